"""Collects ``C = E[k k^T]`` from texts, tokens or samples, for one layer or several in one pass."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex, overload

from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.keys.sources import KeySource, sample_source, short_hash, text_source, token_source
from rome_lens.keys.statistics import KeyStatistics, StatisticsError
from rome_lens.keys.sums import KeySum, Reading, add_source
from rome_lens.models.apply_and_revert import edited_layers
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import exact, fingerprint, w_out_fingerprint
from rome_lens.models.hook_names import has_hooks
from rome_lens.models.lens import LensModel, w_out
from rome_lens.storage import file_errors
from rome_lens.stores import Store
from rome_lens.warning import warn


class EditedModelWarning(UserWarning):
    """Key statistics of a model with edits that change the keys, and with them the statistics."""


@overload
def collect_key_statistics(
    model: LensModel,
    *,
    layer: SupportsIndex,
    texts: Iterable[str] | Iterable[Mapping[str, Any]] | None = ...,
    tokens: Iterable[Tensor] | None = ...,
    openings: Sequence[str] = ...,
    sample_count: int = ...,
    sample_length: int = ...,
    seed: int = ...,
    source: str | None = ...,
    field: str = ...,
    max_tokens: int | None = ...,
    max_length: int | None = ...,
    prepend_bos: bool | None = ...,
    batch_size: int = ...,
    cache: str | Path | None = ...,
    checkpoint_every: int = ...,
    progress: bool = ...,
) -> KeyStatistics: ...
@overload
def collect_key_statistics(
    model: LensModel,
    *,
    layer: Iterable[SupportsIndex],
    texts: Iterable[str] | Iterable[Mapping[str, Any]] | None = ...,
    tokens: Iterable[Tensor] | None = ...,
    openings: Sequence[str] = ...,
    sample_count: int = ...,
    sample_length: int = ...,
    seed: int = ...,
    source: str | None = ...,
    field: str = ...,
    max_tokens: int | None = ...,
    max_length: int | None = ...,
    prepend_bos: bool | None = ...,
    batch_size: int = ...,
    cache: str | Path | None = ...,
    checkpoint_every: int = ...,
    progress: bool = ...,
) -> dict[int, KeyStatistics]: ...
@visits_model
def collect_key_statistics(
    model: LensModel,
    *,
    layer: SupportsIndex | Iterable[SupportsIndex],
    texts: Iterable[str] | Iterable[Mapping[str, Any]] | None = None,
    tokens: Iterable[Tensor] | None = None,
    openings: Sequence[str] = ("",),
    sample_count: int = 512,
    sample_length: int = 64,
    seed: int = 0,
    source: str | None = None,
    field: str = "text",
    max_tokens: int | None = None,
    max_length: int | None = None,
    prepend_bos: bool | None = None,
    batch_size: int = 16,
    cache: str | Path | None = None,
    checkpoint_every: int = 100_000,
    progress: bool = False,
) -> KeyStatistics | dict[int, KeyStatistics]:
    """``C = (1/n) sum_i k_i k_i^T`` over every token of a source, in float64.

    One pass computes it for one layer or for several. The tokens come from ``texts``, from
    ``tokens``, or, with neither, from samples of the model itself. No corpus is needed then.

    The forward pass stops at the last layer that is needed. Peak memory is ``d_mlp^2 * 8`` bytes
    per layer, plus one batch of keys. The original reads 100 000 Wikipedia texts. Pass a stream of
    them as ``texts``, and ``max_tokens`` to read less.

    Args:
        model: the model.
        layer: one layer, or several in any iterable.
        texts: a list of texts, or any iterable of texts or of rows (such as a ``datasets`` stream)
            whose column ``field`` holds the text. A text is cut at ``max_length`` tokens, or at the
            model's context if that is shorter.
        tokens: batches of token ids ``[batch, pos]``, which are run as they are. ``-1`` is padding,
            and only allowed on the right.
        openings: the beginnings that samples continue, in turn. ``""`` starts from BOS alone.
        sample_count: the number of samples.
        sample_length: the length of each sample in tokens, with its opening.
        seed: the seed of the samples.
        source: a name for the texts or tokens. With a cache, a stream needs a name: the
            cache takes two streams of the same name for the same data. A list is identified by its
            content.
        field: the column that holds the text, if ``texts`` holds rows.
        max_tokens: stop after exactly this many keys. An endless stream needs it.
        max_length: maximum number of tokens per text.
        prepend_bos: whether texts and openings start with a BOS token. None uses the model's
            default.
        batch_size: sequences per forward pass. It changes the result by no more than rounding.
        cache: a directory. Statistics of the same model, layer and source are read from it, or
            written to it. An interrupted collection resumes from its partial sums there, with the
            same result bit for bit.
        checkpoint_every: write the partial sums whenever this many keys were added. They are
            removed at the end.
        progress: whether to show a progress bar.

    Returns:
        The layer's ``KeyStatistics``. For several layers, a dict of them by layer.

    Raises:
        StatisticsError: there is no token; a row lacks the field; tokens have the wrong form; keys
            are not finite; or an option is out of range. With a cache also: a stream has no name,
            or is not the one that was interrupted; or the model has hooks, which the cache would
            not know about.
        ModelError: the model has no such layer, no dense MLP there, or no tokenizer.
        StorageError: the cache is a file. This is checked before anything is read.

    Warns:
        EditedModelWarning: the model carries edits that change the keys. Keys depend on the
            ``W_out`` of earlier layers, and samples on that of all layers. The statistics are then
            those of the edited model, and their ``source`` says so.

    Source: Meng et al. 2022, section 3.1 and appendix E.5.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> statistics = rl.collect_key_statistics(
        ...     model, layer=2, sample_count=16, sample_length=32
        ... )
        >>> statistics.count
        512
        >>> statistics.moment.shape
        torch.Size([288, 288])
        >>> by_layer = rl.collect_key_statistics(model, layer=[0, 2], texts=["It was raining."])
        >>> list(by_layer)
        [0, 2]
    """
    layers, several = _layers(model, layer)
    _check_counts(
        batch_size=batch_size,
        checkpoint_every=checkpoint_every,
        max_tokens=max_tokens,
        max_length=max_length,
    )
    read = _texts_or_tokens(
        model,
        texts,
        tokens,
        field=field,
        source=source,
        prepend_bos=prepend_bos,
        max_length=max_length,
    )
    read = read or sample_source(
        model,
        openings=openings,
        sample_count=sample_count,
        sample_length=sample_length,
        seed=seed,
        prepend_bos=prepend_bos,
    )
    if cache is not None:
        _check_cache(model, read)
    store = Store(cache)
    if max_tokens is not None:
        read = replace(read, name=f"{read.name}, the first {max_tokens} keys")
    reading = Reading(
        batch_size=batch_size,
        max_tokens=max_tokens,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )
    collected = _collect(model, layers, read, reading, store)
    return {one: collected[one] for one in layers} if several else collected[layers[0]]


def _texts_or_tokens(
    model: LensModel,
    texts: Iterable[Any] | None,
    tokens: Iterable[Tensor] | None,
    *,
    field: str,
    source: str | None,
    prepend_bos: bool | None,
    max_length: int | None,
) -> KeySource | None:
    """The source of the given texts or tokens. None if the model is to sample its own text."""
    if texts is not None and tokens is not None:
        raise StatisticsError("Both texts and tokens are given: give one of them.")
    if tokens is not None and prepend_bos is not None:
        raise StatisticsError(
            "prepend_bos is given with tokens, which are run as they are: put BOS into them, and "
            "leave prepend_bos out."
        )
    if tokens is not None:
        return token_source(model, tokens, source=source)
    if texts is None:
        return None
    length = min(max_length or model.cfg.n_ctx, model.cfg.n_ctx)
    return text_source(
        model, texts, field=field, source=source, prepend_bos=prepend_bos, max_length=length
    )


def _layers(model: LensModel, layer: Any) -> tuple[list[int], bool]:
    """The layers without repetition, and whether they came as several."""
    # Whether there is an __iter__ says nothing: integers of numpy and torch have one too.
    try:
        listed, several = list(layer), True
    except TypeError:
        listed, several = [layer], False
    numbers = (whole_number("layer", one, error=StatisticsError) for one in listed)
    layers = list(dict.fromkeys(numbers))
    if not layers:
        raise StatisticsError("The list of layers is empty: give at least one.")
    for one in layers:
        w_out(model, one)
    return layers, several


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None:
            whole_number(name, value, least=1, error=StatisticsError)


def _check_cache(model: LensModel, source: KeySource) -> None:
    """Refuse what the cache could not tell apart from something else."""
    if not source.named:
        raise StatisticsError(
            f"The {source.kind} are a stream, and the cache cannot know its content before it is "
            "read. Give it a name, such as source='wikitext-103-raw-v1, train', or pass a list, or "
            "cache=None."
        )
    if has_hooks(model):
        raise StatisticsError(
            "The model has hooks. They may change keys, which the cache would not know about. Call "
            "model.reset_hooks(), or collect with cache=None."
        )


def _collect(
    model: LensModel, layers: Sequence[int], source: KeySource, reading: Reading, store: Store
) -> dict[int, KeyStatistics]:
    """Statistics of each layer: from the cache if they are there, all others in one pass."""
    model_fingerprint = fingerprint(model)
    of_model = exact(model_fingerprint)
    # Keys depend on the W_out of earlier layers. Samples depend on that of all layers.
    before = {one: range(model.cfg.n_layers if source.kind == "samples" else one) for one in layers}
    edited = {one: [each for each in edited_layers(model) if each in before[one]] for one in layers}
    made = {
        one: f"{source.name}, W_out {w_out_fingerprint(model, before[one])}{_edits_at(edited[one])}"
        for one in layers
    }
    _warn_of_edits(edited)
    names = {one: f"{of_model}-l{one}-{source.kind}-{short_hash([made[one]])}" for one in layers}
    paths = {one: store.path(KeyStatistics, name) for one, name in names.items()}
    unfinished = {
        one: path.with_suffix(".unfinished.safetensors")
        for one, path in paths.items()
        if path is not None
    }
    collected = {
        one: kept
        for one, name in names.items()
        if (kept := store.get(KeyStatistics, name)) is not None
    }
    missing = [one for one in layers if one not in collected]
    sums = [KeySum.resumed(model, one, unfinished.get(one)) for one in missing]
    if sums:
        add_source(model, source, sums, replace(reading, unfinished=unfinished))
    for one in sums:
        if one.count == 0:
            raise StatisticsError("There is no token to collect keys from: the texts are empty.")
        statistics = KeyStatistics(
            layer=one.layer,
            moment=one.mean(),
            count=one.count,
            model_fingerprint=model_fingerprint,
            source=made[one.layer],
        )
        collected[one.layer] = statistics
        store.add(names[one.layer], statistics)
    for path in unfinished.values():  # also that of a run that was killed before it came here
        with file_errors(path, "written"):
            path.unlink(missing_ok=True)
    return collected


def _edits_at(layers: Sequence[int]) -> str:
    return f", on a model with edits applied at layers {list(layers)}" if layers else ""


def _warn_of_edits(edited: Mapping[int, Sequence[int]]) -> None:
    if changed := {layer: list(at) for layer, at in edited.items() if at}:
        warn(
            "Edits are applied that change the keys (layer of the keys: layers of the edits): "
            f"{changed}. The statistics are those of the edited model, which suit further edits on "
            "top of these. For statistics of the unedited model, revert the edits first "
            "(rl.applied_edits(model) lists them).",
            EditedModelWarning,
        )
