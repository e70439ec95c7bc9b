"""Make a model's int8 codes beside its sidecar, and judge them.

As much is int8 as passes the gate: everything, or all but the feed-forward's last product, which
takes outliers; texts of few tokens may stay in float32. What does not pass is remembered by its
best figures, since making it again would take minutes and end in the same way.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from plimsoll import files
from plimsoll.encoder.architecture import read_architecture
from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.quantization import codes_file, gate
from plimsoll.encoder.quantization.calibration import Calibration
from plimsoll.encoder.quantization.codes_file import CodesFile, CodesIndex, CodesWriter
from plimsoll.encoder.quantization.gate import Choice, Verdict
from plimsoll.encoder.quantization.linears import DOWN, linear_names
from plimsoll.encoder.quantization.samples import Samples, draw_samples
from plimsoll.encoder.weights import Weights
from plimsoll.errors import CacheCorruptError, CacheError, QuantizationError
from plimsoll.machine.instructions import has_int8_products
from plimsoll.models.failures import closed_on_failure
from plimsoll.sidecar.loader import Progress
from plimsoll.sidecar.sidecar import Sidecar

log = logging.getLogger(__name__)

ALL_NAME = "all.codes"
REFUSED_NAME = "int8-refused.json"
RUN_TOKENS = 2048
# What is done beside rounding the layers, each about as long as one of them.
JUDGING_STEPS = 2


class Quantizer:
    """Codes in the folder of one sidecar. Holds nothing open between calls."""

    def __init__(
        self,
        sidecar: Sidecar,
        *,
        min_cosine: float,
        n_threads: int,
    ) -> None:
        """min_cosine: that the worst text must have to float32. sidecar: only read here."""
        self._folder = sidecar.folder
        self._min_cosine = min_cosine
        self._n_threads = n_threads
        self._architecture = read_architecture(sidecar.header)
        self._content_sha256 = sidecar.index.content_sha256
        self._weights_bytes = sidecar.index.weights_bytes

    def open_codes(self, progress: Progress) -> CodesFile:
        """The model's codes, made first where there are none that pass.

        Another process that makes them is waited for.
        progress: told float32 bytes of layers done and in all. What it raises ends the making.
        Raises QuantizationError where the processor has no int8 products or the worst text's
        cosine is below the least allowed, and CacheError; nothing half made is left.
        """
        if not has_int8_products():
            raise QuantizationError(
                "int8 needs a processor with VNNI, AMX or dot products, which this one has not"
            )
        found = self._found()
        if found is not None:
            return found
        index = self._folder / codes_file.INDEX_NAME
        with files.disk_failures(self._folder), files.locked(files.lock_of(index)):
            found = self._found()
            if found is not None:
                return found
            self._make(progress)
            return CodesFile(self._folder)

    def _found(self) -> CodesFile | None:
        """Codes that are there and pass. Raises QuantizationError where making them is in vain."""
        codes = self._good_codes()
        if codes is None:
            with suppress(OSError, CacheError):
                refused = codes_file.read_index(self._folder / REFUSED_NAME)
                if refused.content_sha256 == self._content_sha256:
                    gate.check(refused.choice, self._min_cosine)
        return codes

    def _good_codes(self) -> CodesFile | None:
        if not codes_file.has_codes(self._folder):
            return None
        try:
            codes = CodesFile(self._folder)
        except CacheCorruptError as error:
            log.warning("int8 codes are made again: %s", error)
            return None
        if codes.index.content_sha256 != self._content_sha256:
            log.warning("int8 codes are made again: %s is of other weights", codes.path)
        elif codes.index.choice.verdict.worst_cosine >= self._min_cosine:
            return codes
        codes.close()
        return None

    def _make(self, progress: Progress) -> None:
        trial = self._folder / codes_file.SCRATCH_NAME
        if trial.exists():  # left by a process that was killed: its lock is gone
            shutil.rmtree(trial)
        trial.mkdir(mode=0o700)
        try:
            with closing(CodesWriter(trial / ALL_NAME)) as everything:
                choice = self._choose(everything, trial, progress)
            self._check(choice)
            (self._folder / codes_file.INDEX_NAME).unlink(missing_ok=True)
            for name in (codes_file.CODES_NAME, codes_file.INDEX_NAME):
                files.publish(trial / name, self._folder / name)
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        log.info("int8 for %s: %s", self._folder.name, choice.figures())

    def _check(self, choice: Choice) -> None:
        try:
            gate.check(choice, self._min_cosine)
        except QuantizationError:
            refused = CodesIndex(choice, self._content_sha256)
            codes_file.write_index(self._folder / REFUSED_NAME, refused)
            raise

    def _choose(self, everything: CodesWriter, trial: Path, progress: Progress) -> Choice:
        """Round all linears, and write into `trial` as many as pass: the fastest that do."""
        layer_bytes = self._weights_bytes // self._architecture.n_layers
        n_steps = self._architecture.n_layers + JUDGING_STEPS

        def note(n_done: int) -> None:
            progress(n_done * layer_bytes, n_steps * layer_bytes, "quantize")

        note(0)
        files.check_space(self._folder, self._weights_bytes // 2)  # all codes, and those chosen
        with closing(self._open(None)) as model:
            samples = _samples(model)
            expected = _vectors(model, samples.held_out)
        note(1)
        self._round(everything, samples, lambda n_layers: note(1 + n_layers))
        names = tuple(
            name for linears in linear_names(self._architecture).values() for name in linears
        )
        lengths = [len(ids) for ids in samples.held_out]
        tried: list[Choice] = []
        for linears in (names, tuple(name for name in names if name != DOWN)):
            self._write(everything, trial, Choice(linears, 0, Verdict(0, 0.0, 0.0)))
            with closing(self._open(CodesFile(trial))) as model:
                near = gate.cosines(expected, _vectors(model, samples.held_out))
            for choice in gate.choices(linears, near, lengths):
                tried.append(choice)
                log.info("int8 tried: %s", choice.figures())
                if gate.passes(choice, self._min_cosine):
                    self._write(everything, trial, choice)
                    note(n_steps)
                    return choice
        best = max(tried, key=lambda choice: choice.verdict.worst_cosine)
        self._write(everything, trial, best)
        note(n_steps)
        return best

    def _open(self, codes: CodesFile | None) -> EmbeddingModel:
        """Open what is judged; packing it ahead for that would take longer than it saves."""
        sidecar = Sidecar(self._folder)
        with closed_on_failure(codes, sidecar):
            return EmbeddingModel(
                "int8", sidecar, [OnnxBackend], n_threads=self._n_threads, codes=codes
            )

    def _round(
        self, everything: CodesWriter, samples: Samples, note: Callable[[int], None]
    ) -> None:
        """Round all linears. note: told the number of layers done."""
        sidecar, architecture = Sidecar(self._folder), self._architecture
        weights = Weights(architecture, sidecar)
        layers = weights.layers()
        backend = OnnxBackend(architecture, weights.embedding(), layers)
        try:
            calibration = Calibration(
                architecture, weights, backend.open_seen_runner(), samples.calibration
            )
            for layer, arrays in enumerate(layers):
                everything.add(calibration.round_layer(arrays))
                note(layer + 1)
        finally:
            arrays = {}
            layers.clear()
            backend.close()
            weights.close()
            sidecar.close()

    def _write(self, everything: CodesWriter, trial: Path, choice: Choice) -> None:
        """Write the codes of a choice into a folder of their own."""
        (trial / codes_file.INDEX_NAME).unlink(missing_ok=True)
        with closing(CodesWriter(trial / codes_file.CODES_NAME)) as writer:
            for layer in range(everything.n_layers):
                writer.add(everything.layer(layer, choice.linears))
            writer.finish(trial / codes_file.INDEX_NAME, choice, self._content_sha256)


def _samples(model: EmbeddingModel) -> Samples:
    return draw_samples(
        lambda texts: [text.ids for text in model.tokenize(texts, None)],
        model.traits.architecture.vocabulary,
        model.traits.token_limit,
    )


def _vectors(model: EmbeddingModel, texts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([model.encode(run) for run in _runs(texts)])


def _runs(texts: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """The texts in their order, in runs of no more than RUN_TOKENS."""
    run: list[np.ndarray] = []
    for text in texts:
        if run and sum(map(len, run)) + len(text) > RUN_TOKENS:
            yield run
            run = []
        run.append(text)
    if run:
        yield run
