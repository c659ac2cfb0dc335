"""Collecting ``C = E[k kT]``: from texts, tokens or the model's own samples, for several layers at once, cached."""

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
from rome_lens.models.fingerprints import fingerprint, w_out_fingerprint
from rome_lens.models.hook_names import has_hooks
from rome_lens.models.lens import LensModel, w_out
from rome_lens.stores import Store
from rome_lens.warning import warn


class EditedModelWarning(UserWarning):
    """Key statistics of a model whose edits change the keys: they are not those of the model without its edits."""


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
    """``C = (1/n) sum_i k_i k_iT`` over every token of a source, in float64, at one layer or at several in one pass.

    Keys depend on the ``W_out`` of earlier layers (and where the model samples, on all): where edits are applied there, the
    statistics are the edited model's, say so in their ``source``, and an :class:`EditedModelWarning` comes.

    The forward stops at the last layer asked for. Peak memory is ``d_mlp^2 * 8`` bytes a layer, and a batch of keys.
    The original reads 100 000 Wikipedia texts: ``texts=`` a stream of them, ``max_tokens=`` to make it shorter.

    Source: Meng et al. 2022, section 3.1 and appendix E.5.

    Args:
        layer: an int gives its ``KeyStatistics``, several in any iterable a ``dict[int, KeyStatistics]`` by layer.
        texts: what to read: a list of texts, or any iterable of texts or of rows (a ``datasets`` stream) whose column
            ``field`` holds the text. A text is cut at ``max_length`` tokens, or at the context if that is shorter.
        tokens: in place of texts, batches of ids ``[batch, pos]`` as they are to be run, ``-1`` for padding on the right.
        openings, sample_count, sample_length, seed: where there are neither texts nor tokens, the model samples as many
            sequences, which continue the openings in turn (``""`` starts from BOS alone). No corpus is needed then.
        source: a name for the texts or tokens. A stream needs one where there is a cache: it says what the stream holds,
            from its beginning. A list is told by its content.
        max_tokens: stop after exactly as many keys; an endless stream needs it.
        batch_size: sequences in one forward. It changes no number beyond rounding.
        cache: a directory; statistics of the same model, layer and source are read from there, or written to it. A
            collection broken off goes on from its partial sums there, to the same numbers bit for bit; they are written
            whenever ``checkpoint_every`` keys were added, and removed in the end.

    Raises:
        StatisticsError: there is no token; with a cache a stream without a name, or not the one that was broken off; a row
            without the field; tokens of the wrong form; keys that are not finite; an option out of range; hooks on the
            model, of which the cache would not know.
        ModelError: layer out of range, no dense MLP, no tokenizer.
        StorageError: the cache is a file; before anything is read.
    """
    layers, several = _layers(model, layer)
    _check_limits(
        batch_size=batch_size,
        checkpoint_every=checkpoint_every,
        max_tokens=max_tokens,
        max_length=max_length,
    )
    given = _given(
        model,
        texts,
        tokens,
        field=field,
        source=source,
        prepend_bos=prepend_bos,
        max_length=max_length,
    )
    read = given or sample_source(
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
    found = _collected(model, layers, read, reading, store)
    return {one: found[one] for one in layers} if several else found[layers[0]]


def _given(
    model: LensModel,
    texts: Iterable[Any] | None,
    tokens: Iterable[Tensor] | None,
    *,
    field: str,
    source: str | None,
    prepend_bos: bool | None,
    max_length: int | None,
) -> KeySource | None:
    """The texts or tokens that were given; None where the model is to sample its own."""
    if texts is not None and tokens is not None:
        raise StatisticsError("Both texts and tokens are given: give one of them.")
    if tokens is not None and prepend_bos is not None:
        raise StatisticsError(
            "prepend_bos is given with tokens, which are run as they are: put BOS into them."
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
    """The layers asked for, each once, and whether they were asked for as several."""
    try:
        given, several = list(layer), True
    except (
        TypeError
    ):  # asked of the object itself, since numpy's and torch's integers have __iter__ too
        given, several = [layer], False
    layers = list(dict.fromkeys(whole_number("layer", one, error=StatisticsError) for one in given))
    if not layers:
        raise StatisticsError("The list of layers is empty: give at least one.")
    for one in layers:
        w_out(model, one)
    return layers, several


def _check_limits(**limits: int | None) -> None:
    for name, value in limits.items():
        if value is not None:
            whole_number(name, value, least=1, error=StatisticsError)


def _check_cache(model: LensModel, source: KeySource) -> None:
    """Refuse what a cache could not tell from something else."""
    if not source.named:
        raise StatisticsError(
            f"The {source.kind} are a stream, which cannot be told by its content before it is read: name it for the cache, "
            "source='wikitext-103-raw-v1, train', or give a list, or cache=None."
        )
    if has_hooks(model):
        raise StatisticsError(
            "The model has hooks, which may change keys and which the cache would not know of: model.reset_hooks(), or "
            "collect with cache=None."
        )


def _collected(
    model: LensModel, layers: Sequence[int], source: KeySource, reading: Reading, store: Store
) -> dict[int, KeyStatistics]:
    """Statistics of each layer, from the cache where they are there, and all others in one pass."""
    known = fingerprint(model)
    # What keys depend on: earlier W_outs, and where the model writes its own text, all of them.
    before = {one: range(model.cfg.n_layers if source.kind == "samples" else one) for one in layers}
    edited = {one: [each for each in edited_layers(model) if each in before[one]] for one in layers}
    made = {
        one: f"{source.name}, W_out {w_out_fingerprint(model, before[one])}{_edits_at(edited[one])}"
        for one in layers
    }
    _warn_of_edits(edited)
    names = {one: f"{known}-l{one}-{source.kind}-{short_hash([made[one]])}" for one in layers}
    paths = {one: store.path(KeyStatistics, name) for one, name in names.items()}
    unfinished = {
        one: path.with_suffix(".unfinished.safetensors")
        for one, path in paths.items()
        if path is not None
    }
    found = {
        one: kept
        for one, name in names.items()
        if (kept := store.get(KeyStatistics, name)) is not None
    }
    sums = [KeySum.begun(model, one, unfinished.get(one)) for one in layers if one not in found]
    if sums:
        add_source(model, source, sums, replace(reading, unfinished=unfinished))
    for one in sums:
        if one.count == 0:
            raise StatisticsError("There is no token to collect keys from: the texts are empty.")
        statistics = KeyStatistics(
            layer=one.layer,
            moment=one.mean(),
            count=one.count,
            model_fingerprint=known,
            source=made[one.layer],
        )
        found[one.layer] = statistics
        store.add(names[one.layer], statistics)
        if one.layer in unfinished:
            unfinished[one.layer].unlink(missing_ok=True)
    return found


def _edits_at(layers: Sequence[int]) -> str:
    return f", on a model with edits applied at layers {list(layers)}" if layers else ""


def _warn_of_edits(edited: Mapping[int, Sequence[int]]) -> None:
    if changed := {layer: list(at) for layer, at in edited.items() if at}:
        warn(
            f"Edits are applied that change the keys (layer of the keys: layers of the edits): {changed}. These statistics "
            "are the edited model's, as edits made on top of the others may want them; for the model as it was, revert the "
            "edits first (rl.applied_edits(model) lists them).",
            EditedModelWarning,
        )
