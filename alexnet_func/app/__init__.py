"""The application: `alexnet` on the command line (`cli`) and the training run (`fit`)."""
