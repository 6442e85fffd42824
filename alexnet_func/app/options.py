"""What each command is told: one record a command, its fields the options, each checked where it is declared.

On the command line `alexnet train` shows the fields of `Run` and of `recipes.Recipe` side by side.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
import tyro

from alexnet_func import random
from alexnet_func.app.recipes import Recipe, check_range
from alexnet_func.data import images
from alexnet_func.data.images import Orientation
from alexnet_func.parallel import Reduction
from alexnet_func.train import Precision

Device = Literal["auto", "cpu", "cuda"]
Flag = tyro.conf.FlagCreatePairsOff[bool]
Path = Annotated[str, tyro.conf.arg(metavar="DIR")]
Model = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN|FILE|torchvision")]]
_COMPILE = tyro.conf.create_mutex_group(required=False, title="compilation of the training step")
_STREAM = tyro.conf.create_mutex_group(required=False, title="images in memory")


def device_of(name: Device) -> torch.device:
    """The device of that name. Raises ValueError for "cuda" where torch sees none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def either(yes: bool, no: bool) -> bool | None:
    """What a pair of flags says: None where neither was given."""
    return True if yes else False if no else None


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command may be told."""

    debug: Flag = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value == "" or (isinstance(value, tuple) and "" in value):
                raise ValueError(f"{field.name} is empty: name a file or a directory")


@dataclass(frozen=True, kw_only=True)
class Decoding(Common):
    """What commands that write down how images are read may be told."""

    orientation: Orientation = "exif"
    """exif: photographs are turned as viewers show them; stored: as their pixels lie, as torchvision reads them."""


@dataclass(frozen=True, kw_only=True)
class AsTrained(Common):
    """What commands that use a trained network may be told."""

    orientation: Orientation | None = None
    """As for train; None: as the network was trained."""


@dataclass(frozen=True, kw_only=True)
class Images(Common):
    """What commands that read a whole data set may be told."""

    root: Path = "data"
    """Where downloaded data sets lie."""
    holdout: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """Share of each class to test on, of a folder that has no test split: 0.1 for a tenth."""
    skip_bad_images: Flag = False
    """Leave unreadable images out instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class Data(Images):
    """What commands that read a data set for a network may be told."""

    data: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")] = "digits"
    """digits (embedded, no download), cifar10, cifar100, imagenet, a folder with train/<class>/* and test/ or val/, or
    one that prepare wrote."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA if there is any."""


@dataclass(frozen=True, kw_only=True)
class Run(Data, Decoding):
    """Data, device and record of a run."""

    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Train on the first N images of a fixed shuffle; None: on all."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Seed of the run's key; initial parameters, dropout, order and augmentation follow from it."""
    out: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Directory for config.json, metrics.jsonl, and the checkpoints of the last and of the best epoch; None: nothing is
    saved."""
    resume: Flag = False
    """Go on with the checkpoint in --out, if there is one."""
    keep_every: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Also keep the checkpoint of every N-th epoch; None: of the last and of the best alone."""
    patience: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """End the run when the test accuracy has not been better for N epochs; None: after the last one."""
    init: Annotated[str | None, tyro.conf.arg(metavar="torchvision|FILE|RUN")] = None
    """Start from these parameters."""
    precision: Precision | None = None
    """Of the forward and backward pass; None: bf16 on CUDA, float32 on a CPU and of private runs. Parameters stay
    float32."""
    parallel: Literal["data", "hybrid"] = "data"
    """Under torchrun: data: each rank has the whole network and its share of a batch; hybrid: of the linear layers its
    share of the outputs, so that activations travel instead of gradients (Krizhevsky 2014)."""
    reduction: Reduction | None = None
    """Under torchrun: round gradients to bfloat16 for their way between ranks."""
    compile: Annotated[Flag, _COMPILE] = False
    """Compile it; the default on CUDA alone."""
    no_compile: Annotated[Flag, _COMPILE] = False
    """Run it eagerly; the default on a CPU."""
    stream: Annotated[Flag, _STREAM] = False
    """Decode files, or read shards, anew in every epoch; the default where they take over a quarter of the memory."""
    no_stream: Annotated[Flag, _STREAM] = False
    """Decode or read them once into memory; the default for the rest. A run's result is the same."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes that decode a stream; None: one a processor, and none for up to 1,000 images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        random.key(self.seed)  # raises for what is no seed
        check_range("limit", self.limit, 1)
        check_range("patience", self.patience, 1)
        check_range("keep_every", self.keep_every, 1)
        check_range("workers", self.workers, 0, 1024)
        if self.resume and self.out is None:
            raise ValueError("--resume needs --out: which run?")
        if self.keep_every is not None and self.out is None:
            raise ValueError("--keep-every needs --out: kept where?")
        for yes, no in (("compile", "no_compile"), ("stream", "no_stream")):
            if getattr(self, yes) and getattr(self, no):
                raise ValueError(f"--{yes} and --{no.replace('_', '-')} exclude each other")


def compiles(run: Run, device: torch.device) -> bool:
    """Whether the training step is compiled: as the flags say, else on CUDA alone."""
    return run.compile or (device.type == "cuda" and not run.no_compile)


def precision_of(run: Run, recipe: Recipe, device: torch.device) -> Precision:
    """The precision that was asked for, or that of the device, or of private sums."""
    return run.precision or ("bf16" if device.type == "cuda" and recipe.dp_epsilon is None else "float32")


@dataclass(frozen=True, kw_only=True)
class Eval(Data, AsTrained):
    """Evaluate a network on the test split: top-1, top-5, loss, accuracy by class, confusion matrix."""

    source: Model
    """A run directory, a checkpoint, a file of torchvision's AlexNet, or the published weights."""
    ten_crop: Flag = False
    """Average over four corners and centre and their mirror images."""


@dataclass(frozen=True, kw_only=True)
class Predict(AsTrained):
    """Print the five likeliest classes of each image."""

    source: Model
    """As for eval."""
    images: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE")]]
    """Image files, and folders of such."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA if there is any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images:
            raise ValueError("predict of what? Name image files or folders: alexnet predict RUN IMAGE ...")


@dataclass(frozen=True, kw_only=True)
class Inspect(Data, AsTrained):
    """Show the training images with the largest gradients, where wrong labels and oddities surface."""

    source: Model
    """As for eval."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory for what is written; None: the run's own, or this one."""
    explain: Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE")] = ()
    """Instead show which training images pull the prediction for each of these image files, for and against."""
    views: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """For --explain: gradients of N views of each training image, augmented as in training; None: of its middle."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """The first N training images of a fixed shuffle; None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("limit", self.limit, 1)
        check_range("views", self.views, 1, 1024)
        if self.views is not None and not self.explain:
            raise ValueError("--views goes with --explain: of which image?")


@dataclass(frozen=True, kw_only=True)
class Prepare(Images, Decoding):
    """Decode image files once into shards that training reads without decoding; killed, it goes on where it was."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="imagenet|DIR")]]
    """ImageNet, or a folder with train/<class>/* and test/ or val/."""
    out: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DST")]]
    """Directory for manifest.json and the shards."""
    side: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 256
    """The shorter side is resized to this and the middle square kept, as the paper did."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Threads that decode; None: one a processor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("side", self.side, 1, images.MAX_SIDE)
        check_range("workers", self.workers, 1, 1024)
