"""The second moment of a layer's keys, ``C = E[k kT]``: which directions of key space are in use, and how much."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from rome_lens.forward import keys_of
from rome_lens.models import LensModel, ModelError, check_layer, device, fingerprint, w_out, w_out_fingerprint
from rome_lens.sampling import sample_tokens
from rome_lens.storage import Stored
from rome_lens.tokens import pad_right, token_ids


class StatisticsError(ValueError):
    """Key statistics that do not fit the edit, or cannot be inverted."""


@dataclass(frozen=True, kw_only=True, repr=False)
class KeyStatistics(Stored):
    """``C = E[k kT]`` over tokens, uncentred, ``k`` the input of ``W_out`` at one layer.

    Source: Meng et al. 2022, section 3.1 and appendix E.5.

    Attributes:
        moment: ``C``, float64.
        count: the number of keys that were averaged; 0 where nothing was (the identity).
        model_fingerprint: of the model they come from; None is not checked.
        source: where the tokens came from, in words.
    """

    layer: int
    moment: Float[Tensor, "d_mlp d_mlp"]
    count: int
    model_fingerprint: str | None = None
    source: str = "unnamed"

    def __repr__(self) -> str:
        return (
            f"KeyStatistics(layer={self.layer}, d_mlp={len(self.moment)}, count={self.count}, source={self.source!r})"
        )

    @classmethod
    def identity(cls, model: LensModel, *, layer: int) -> "KeyStatistics":
        """``C = I``: an edit without statistics, said on purpose. It spills over onto keys that resemble ``k*``."""
        d_mlp = w_out(model, layer).shape[0]
        moment = torch.eye(d_mlp, dtype=torch.float64)
        return cls(layer=layer, moment=moment, count=0, model_fingerprint=fingerprint(model), source="identity")

    def solve(self, key: Float[Tensor, " d_mlp"], *, ridge: float = 0.0) -> Float[Tensor, " d_mlp"]:
        """``(C + ridge * mean(diag C) * I)^-1 k`` by Cholesky, in float64.

        Raises:
            StatisticsError: ``C`` is singular, as it is when fewer keys than ``d_mlp`` were averaged, and no ridge is given.
        """
        d_mlp = self.moment.shape[0]
        if key.shape != (d_mlp,):
            raise StatisticsError(
                f"The key has {key.shape[0]} entries, the statistics are {d_mlp} x {d_mlp}: other models."
            )
        advice = (
            "Collect more tokens, or give a ridge (RomeConfig(ridge=1e-3)), which keeps the edit defined and coarser."
        )
        if ridge == 0.0 and 0 < self.count < d_mlp:
            raise StatisticsError(
                f"The second moment was averaged over {self.count} keys, fewer than its width {d_mlp}, and is singular. {advice}"
            )
        moment = self.moment.double()
        if ridge:
            moment = moment + ridge * moment.diagonal().mean() * torch.eye(d_mlp, dtype=torch.float64)
        factor, info = torch.linalg.cholesky_ex(moment)
        if int(info):
            raise StatisticsError(
                f"The second moment ({self.count} keys, width {d_mlp}) is not positive definite. {advice}"
            )
        return torch.cholesky_solve(key.double()[:, None], factor)[:, 0]

    def check(self, model: LensModel, *, layer: int) -> None:
        """Raise StatisticsError unless these statistics are this model's, at this layer."""
        if self.layer != layer:
            raise StatisticsError(
                f"The statistics are of layer {self.layer}, the edit is at layer {layer}: collect them there."
            )
        d_mlp = w_out(model, layer).shape[0]
        if self.moment.shape != (d_mlp, d_mlp):
            raise StatisticsError(
                f"The statistics have shape {list(self.moment.shape)}, the layer's keys {d_mlp} entries."
            )
        if self.model_fingerprint not in (None, fingerprint(model)):
            raise StatisticsError(
                f"The statistics are of the model {self.model_fingerprint}, this one is {fingerprint(model)}: "
                "collect them on this model."
            )


def collect_key_statistics(
    model: LensModel,
    *,
    layer: int,
    texts: Iterable[str] | None = None,
    openings: Sequence[str] = ("",),
    sample_count: int = 512,
    sample_length: int = 64,
    seed: int = 0,
    prepend_bos: bool | None = None,
    batch_size: int = 16,
    cache: str | Path | None = None,
    progress: bool = False,
) -> KeyStatistics:
    """``C = (1/n) sum_i k_i k_iT`` over every token of texts, or of samples from the model itself; float64.

    The forward stops at ``layer``. A text longer than the context is cut there.

    Args:
        texts: what to read. None samples from the model: ``sample_count`` sequences of ``sample_length`` tokens, which
            continue the ``openings`` in turn (``""`` starts from BOS alone). No corpus is needed then.
        batch_size: sequences in one forward. It changes no number beyond rounding.
        cache: a directory; statistics of the same model, layer and source are read from there, or written to it.

    Raises:
        StatisticsError: there is no text, or no token in it; samples of no length or longer than the context.
        ModelError: layer out of range, no dense MLP, no tokenizer.
    """
    w_out(model, check_layer(model, layer))
    if batch_size < 1:
        raise StatisticsError(f"batch_size is {batch_size}, expected at least 1.")
    if texts is None and (sample_count < 1 or not 2 <= sample_length <= model.cfg.n_ctx):
        raise StatisticsError(
            f"sample_count is {sample_count} and sample_length {sample_length}, expected at least 1, and 2 to "
            f"{model.cfg.n_ctx} (the context)."
        )
    if texts is None:
        source = f"{sample_count} samples of {sample_length} tokens, seed {seed}, openings {_short_hash(openings)}"
        name = "samples"
    else:
        texts = list(texts)
        source = f"{len(texts)} texts {_short_hash(texts)}"
        name = "texts"
    # What keys depend on: earlier W_outs, and where the model writes its own text, all of them.
    edited = w_out_fingerprint(model, range(layer if texts is not None else model.cfg.n_layers))
    bos = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
    made = f"{source}, bos {bos}, W_out {edited}"
    path = (
        None
        if cache is None
        else Path(cache) / f"keys-{fingerprint(model)}-l{layer}-{name}-{_short_hash([made])}.safetensors"
    )
    if path is not None and path.is_file():
        return KeyStatistics.load(path)
    if texts is None:
        batches = _sampled(model, openings, sample_count, sample_length, seed, prepend_bos, progress)
    else:
        batches = _tokenised(model, texts, prepend_bos, batch_size, progress)
    moment, count = _second_moment(model, layer, batches)
    if count == 0:
        raise StatisticsError("There is no token to collect keys from: the texts are empty.")
    statistics = KeyStatistics(
        layer=layer, moment=moment / count, count=count, model_fingerprint=fingerprint(model), source=made
    )
    if path is not None:
        statistics.save(path)
    return statistics


def _second_moment(
    model: LensModel, layer: int, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Float[Tensor, "d_mlp d_mlp"], int]:
    """The sum of ``k kT`` over the real tokens of all batches, and their number."""
    d_mlp = w_out(model, layer).shape[0]
    total = torch.zeros(d_mlp, d_mlp, dtype=torch.float64, device=device(model))
    count = 0
    for tokens, real in batches:
        keys = keys_of(model, tokens, layer)[real.to(device(model))].double()
        total += keys.T @ keys
        count += len(keys)
    return total.cpu(), count


def _tokenised(
    model: LensModel, texts: Sequence[str], prepend_bos: bool | None, batch_size: int, progress: bool
) -> Iterator[tuple[Int[Tensor, "batch pos"], Tensor]]:
    for start in tqdm(range(0, len(texts), batch_size), desc="key statistics", disable=not progress):
        rows = [
            token_ids(model, text, prepend_bos=prepend_bos, truncate=True) for text in texts[start : start + batch_size]
        ]
        rows = [row for row in rows if row]
        if rows:
            lengths = torch.tensor([len(row) for row in rows])
            tokens = pad_right(rows)
            yield tokens, torch.arange(tokens.shape[1])[None] < lengths[:, None]


def _sampled(
    model: LensModel,
    openings: Sequence[str],
    sample_count: int,
    sample_length: int,
    seed: int,
    prepend_bos: bool | None,
    progress: bool,
) -> Iterator[tuple[Int[Tensor, "batch pos"], Tensor]]:
    bos = getattr(model.tokenizer, "bos_token_id", None)
    if bos is None:
        raise ModelError("The tokenizer has no BOS token to start samples from: give texts.")
    openings = list(openings) or [""]
    rows = [
        token_ids(model, openings[i % len(openings)], prepend_bos=prepend_bos) or [bos] for i in range(sample_count)
    ]
    by_length: dict[int, list[list[int]]] = {}
    for row in rows:
        by_length.setdefault(min(len(row), sample_length - 1), []).append(row[: sample_length - 1])
    with tqdm(total=sample_count, desc="key statistics", disable=not progress) as bar:
        for length, group in sorted(by_length.items()):
            for start in range(0, len(group), 128):
                chunk = group[start : start + 128]
                tokens = sample_tokens(
                    model, chunk, new_tokens=sample_length - length, seed=seed + 1000 * length + start
                )
                bar.update(len(chunk))
                yield tokens, torch.ones_like(tokens, dtype=torch.bool)


def _short_hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:10]
