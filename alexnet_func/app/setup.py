"""What a run needs before its first step: data, network, preparation, optimiser and step, from its options alone."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet_func import arch, model, optim, parallel, random, train
from alexnet_func.app import layout, models, optimizers, options, private, runs, steps
from alexnet_func.app.options import Run
from alexnet_func.app.progress import Show
from alexnet_func.app.recipes import Recipe
from alexnet_func.data import augment, datasets, preprocess, sources
from alexnet_func.data.preprocess import Moments
from alexnet_func.data.sources import Source


class Job(NamedTuple):
    """A run made ready. `steps` is of an epoch; `config` is what a resumed run must have in common with it.

    `step(state, (key, index, pixels, labels))` takes a batch as it was fetched and prepares it by the epoch's key, and
    the state as `layout` has it. A private run has a `plan`, and its secrets unless they are gone.
    """

    recipe: Recipe
    network: arch.Arch
    classes: tuple[str, ...]
    images: Source
    test: Source
    moments: Moments
    optimizer: optim.Optimizer
    step: train.StepFunction | train.Step
    layout: layout.Layout
    steps: int
    data_key: random.Key
    patience: int | None
    plan: private.Plan | None
    secrets: private.Secrets | None
    config: dict[str, Any]


def prepared(run: Run, recipe: Recipe, device: torch.device, show: Show) -> Job:
    """Loads the data, as `run` says, and builds what `recipe` says.

    Raises ValueError for settings that do not fit together, and as `datasets.load` and `sources.open_split` do.
    """
    _check_ranks(run, recipe, parallel.world_size())
    _check_private(run, recipe)
    network = models.named(recipe.arch)
    classes, images, test, contents = _data(run, preprocess.stored_side(network), device, show)
    network = network.replace(num_classes=len(classes))
    per_epoch = len(images.labels) // recipe.batch_size
    if per_epoch == 0:
        raise ValueError(f"--batch-size {recipe.batch_size} is larger than the {len(images.labels)} training images")
    plan = private.planned(recipe, len(images.labels))
    secrets = None if plan is None else private.secret(_directory(run), _goes_on(run), device)
    moments, components = _statistics(images, recipe, plan, network.image_size)
    noise_until = optimizers.noise_until(recipe, per_epoch)
    prepare = preprocess.preparation(recipe.augmentation, network.image_size, moments, components, noise_until)
    setting = steps.Setting(run, recipe, network, device, plan, None if secrets is None else secrets.noise)
    optimizer, step = steps.made(setting, per_epoch, prepare)
    return Job(
        recipe=recipe,
        network=network,
        classes=classes,
        images=images,
        test=test,
        moments=moments,
        optimizer=optimizer,
        step=step,
        layout=layout.split(network, device) if run.parallel == "hybrid" else layout.DATA,
        steps=per_epoch,
        data_key=_keys(run, device)[2],
        patience=run.patience,
        plan=plan,
        secrets=secrets,
        config=_config(
            run,
            recipe,
            device,
            arch=network.to_json(),
            classes=classes,
            contents=contents,
            **(_recorded(moments) | private.recorded(plan)),
        ),
    )


def fresh(run: Run, job: Job, device: torch.device, show: Show) -> runs.Progress:
    """The start of a run: parameters of its seed or of `--init`, and the optimiser's first state."""
    init_key, train_key, _ = _keys(run, device)
    params = initial_params(run, init_key, job.network, show)
    frozen = steps.frozen_names(job.recipe, job.network)
    trained = {name: p for name, p in params.items() if name not in frozen}
    state = train.create_state(trained, job.optimizer, key=train_key)
    state = state._replace(params={name: state.params.get(name, p) for name, p in params.items()})
    return runs.Progress(state, 0.0, 0, runs.Best(-1.0, 0))


def initial_params(run: Run, key: Tensor, network: arch.Arch, show: Show) -> model.Params:
    """Drawn from `key`, or those of `--init`, whose last layer is drawn anew where its size differs."""
    drawn = model.init(key, network)
    if run.init is None:
        return drawn
    source = models.load_model(run.init, key.device)
    show.lines([source.note] if source.note else [])
    if source.arch.replace(num_classes=network.num_classes) != network:
        held = f"another {network.name}" if source.arch.name == network.name else source.arch.name
        raise ValueError(f"--init {run.init} holds {held}, and --arch is {network.name}")
    differing = [name for name, p in drawn.items() if source.params[name].shape != p.shape]
    if differing:
        show.line(f"drawn anew, as the classes differ: {', '.join(differing)}")
    return {name: p if name in differing else source.params[name] for name, p in drawn.items()}


def epoch_keys(data_key: random.Key, epoch: int) -> Tensor:
    """The keys of an epoch's order and of its augmentation, [2, 2]."""
    return random.split(random.fold_in(data_key, epoch))


def epoch_order(job: Job, data_key: random.Key, epoch: int) -> tuple[Tensor, ...]:
    """The indices of an epoch's batches, where the key lies; a last, smaller one is left out."""
    order = random.permutation(epoch_keys(data_key, epoch)[0], len(job.images.labels))
    return order.split(job.recipe.batch_size)[: job.steps]


def orders_from(job: Job, done: int) -> Iterable[Tensor]:
    """The shares of this rank of all batches after the first `done`: one stream, so that epochs are read ahead too."""
    first_epoch, first = divmod(done, job.steps)
    if job.plan is not None and job.secrets is not None:
        chosen, included = private.audited(job.recipe, job.plan.examples, job.secrets)
        left_out = chosen[~included]
        yield from (private.sampled(job.plan, job.secrets, left_out, step) for step in range(done, job.plan.steps))
        return
    data_key = job.data_key.cpu()  # once: a GPU is waited for
    for epoch in range(first_epoch, job.recipe.epochs):
        yield from map(parallel.share, epoch_order(job, data_key, epoch)[first if epoch == first_epoch else 0 :])


def _directory(run: Run) -> Path | None:
    return None if run.out is None else Path(run.out)


def _goes_on(run: Run) -> bool:
    out = _directory(run)
    return run.resume and out is not None and (out / runs.CHECKPOINT).exists()


def _statistics(images: Source, recipe: Recipe, plan: private.Plan | None, size: int) -> tuple[Moments, Tensor | None]:
    """What images are normalised by, and the components of the paper's colour noise."""
    if plan is not None:
        return private.MOMENTS, None
    sample = preprocess.sample(images)
    components = augment.rgb_components(sample) if recipe.augmentation in preprocess.COLOURED else None
    return preprocess.statistics(sample, recipe.normalization, size), components


def _recorded(moments: Moments) -> dict[str, Any]:
    image = {} if moments.image is None else {"mean_image": preprocess.encoded_image(moments.image)}
    return {"mean": moments.mean, "std": moments.std, **image}


def _check_ranks(run: Run, recipe: Recipe, ranks: int) -> None:
    if recipe.batch_size % ranks:
        raise ValueError(f"--batch-size {recipe.batch_size} does not divide among {ranks} ranks")
    if ranks > 1 and run.skip_bad_images:
        raise ValueError("--skip-bad-images makes the ranks' batches unequal: let alexnet prepare leave such files out")
    if run.parallel == "hybrid" and run.reduction is not None:
        raise ValueError("--reduction is of gradients, which --parallel hybrid does not send for the linear layers")
    if run.parallel == "hybrid" and recipe.optimizer == "muon":
        raise ValueError("--optimizer muon orthogonalises each weight as a whole: not with --parallel hybrid")
    if run.parallel == "hybrid" and recipe.dp_epsilon is not None:
        raise ValueError("--dp-epsilon clips the gradient of each image as a whole: not with --parallel hybrid")


def _check_private(run: Run, recipe: Recipe) -> None:
    if recipe.dp_epsilon is None:
        return
    if run.precision not in (None, "float32"):
        raise ValueError(f"--dp-epsilon wants sums in float32, not --precision {run.precision}")
    if run.reduction is not None:
        raise ValueError(f"--dp-epsilon wants sums in float32, not --reduction {run.reduction}")


class _Data(NamedTuple):
    classes: tuple[str, ...]
    images: Source
    test: Source
    contents: tuple[str, str]


def _data(run: Run, side: int, device: torch.device, show: Show) -> _Data:
    reading = sources.Reading(
        device,
        skip_bad=run.skip_bad_images,
        stream=options.either(run.stream, run.no_stream),
        workers=run.workers,
        cache=_directory(run),
        orientation=run.orientation,
        track=show.track,
        tell=show.line,
    )
    with parallel.first_rank_first():  # to download, and to keep what it decodes
        dataset = datasets.load(run.data, root=run.root, holdout=run.holdout)
        show.lines(dataset.notes)
        if not len(dataset.train.labels):
            raise ValueError(f"{run.data} has a test split alone: there is nothing to train on")
        images = sources.open_split(preprocess.limited(dataset.train, run.limit), side, reading, "train")
        test = sources.open_split(dataset.test, side, reading, "test")
    return _Data(dataset.classes, images, test, (dataset.train.contents(), dataset.test.contents()))


def _keys(run: Run, device: torch.device) -> tuple[Tensor, ...]:
    """Of the initial parameters, of training (dropout), of data (order and augmentation)."""
    return random.split(random.key(run.seed, device), 3).unbind()


_RECORDED = ("data", "holdout", "orientation", "seed", "limit", "init", "reduction")


def _config(run: Run, recipe: Recipe, device: torch.device, **found: Any) -> dict[str, Any]:
    settings = {name: getattr(run, name) for name in _RECORDED}
    settings |= {"precision": options.precision_of(run, recipe, device)}
    varying = {"device": str(device), "compile": options.compiles(run, device)}
    # Through JSON, so that it compares equal to what a checkpoint gives back.
    # And without what was not there before, so that runs of then go on.
    groups = [group._asdict() for group in recipe.groups]
    chosen = asdict(recipe) | {"freeze": recipe.freeze or None, "groups": groups or None}
    chosen |= {"label_smoothing": recipe.label_smoothing or None}
    chosen |= {"normalization": None if recipe.normalization == "moments" else recipe.normalization}
    if recipe.dp_epsilon is None:
        chosen = {name: value for name, value in chosen.items() if not name.startswith("dp_")}
    return json.loads(json.dumps({**chosen, **settings, **varying, **found}))
