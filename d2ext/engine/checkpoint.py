"""Checkpoints that survive a kill at any moment, a full disk and a truncated file."""

import contextlib
import logging
import os
import re
import zipfile
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Tuple
from urllib.error import URLError

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import Detectron2Handler
from fvcore.common.checkpoint import _IncompatibleKeys

from d2ext._files import RunError, WriteError, atomic_write, open_regular, reason_of
from d2ext.modeling.backbones.pretrained import (
    backbone_weights,
    in_timm_names,
    is_weights_name,
    local_file,
)
from d2ext.safe_load import (
    UnsafeFileError,
    load_arrays,
    load_tensors,
    safetensors_description,
    weights_file,
)

from .errors import DamagedCheckpointError, NonFiniteLossError, is_lost_worker
from .module_state import buffers_of, nonfinite_tensors

__all__ = ["Checkpointer", "atomic_write", "plain"]

logger = logging.getLogger(__name__)

# What training changes; descriptions and figures beside it may be NaN.
_OF_TRAINING = ("model", "trainer", "optimizer", "ranks")
_NUMBERED = re.compile(r"^model_(\d{7,})\.pth$")
# Only this trainer's own files: others may still be being written.
_LEFTOVER = re.compile(r"^(.+\.pth|last_checkpoint|metrics\.json)\.\d+\.part$")


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with safe writing, safe reading and a limit on their number.

    * A file is written aside, flushed to the disk and renamed: a file ``*.pth`` is never
      half a checkpoint, and a failed write leaves the one before in place.
    * Files hold tensors and plain values only and are read with ``weights_only=True``; of a
      ``.pkl`` file of the model zoo only arrays are read. Others are refused.
    * A damaged newest file is skipped, with a warning, in favour of the one before.
    * A disk that refuses a file ends the run: see :class:`WriteError`.
    * No file holds weights, averages or an optimiser's state with a number that is not finite: it
      is not written, and one that is there already is skipped on a resume.
    * Files of other runs are never removed, whatever ``max_to_keep`` says.

    Args:
        model: the model, or its DistributedDataParallel wrapper.
        save_dir: where checkpoints are written and looked for.
        max_to_keep: numbered checkpoints of this run that are kept; 0 keeps all.
        allow_pickle: read files with other Python objects, too, which may run any code.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: Optional[bool] = None,
        max_to_keep: int = 0,
        allow_pickle: bool = False,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.max_to_keep = max_to_keep
        self.allow_pickle = allow_pickle
        self.last_incompatible: Optional[_IncompatibleKeys] = None
        self._path = ""  # what is being loaded
        self._named = ""  # the same, if it is not a file
        self._numbered: List[str] = []  # those that this run has written, the newest last
        # A mask of -inf, say, that a model keeps in a buffer.
        self._infinite = [f".{name}" for name in nonfinite_tensors(buffers_of(self.model))]

    def save(self, name: str, *, tag: bool = True, **extra: Any) -> None:
        """Write ``{name}.pth``.

        Args:
            name: the file's name without ".pth".
            tag: whether a resumed run starts from this file.
            extra: further data to save.

        Raises:
            WriteError: the disk refuses; what was there before is untouched.
            NonFiniteLossError: the data holds a number that is not finite.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data: Dict[str, Any] = {"model": self.model.state_dict()}
        for key, checkpointable in self.checkpointables.items():
            data[key] = checkpointable.state_dict()
        # The run that goes on from this file removes them in its turn.
        data["checkpoints"] = self._numbered_with(f"{name}.pth")
        data.update(extra)
        self.write(name, data, tag=tag)

    def write(self, name: str, data: Dict[str, Any], *, tag: bool = True) -> None:
        """Write ready data as ``{name}.pth``; see :meth:`save`."""
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        data = plain(data)
        self._require_finite(path, data)
        try:
            os.makedirs(self.save_dir, exist_ok=True)
            with atomic_write(path) as stream:
                torch.save(data, stream)
            if tag:
                self.tag_last_checkpoint(os.path.basename(path))
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as RuntimeError. The run ends here: going on without
            # being able to save would only add to what the next fault costs.
            if is_lost_worker(error):
                raise
            reason = reason_of(error)
            raise WriteError(
                f"Could not write {path} ({reason}); the checkpoints before it are untouched: "
                "free some disk space and start again with --resume."
            ) from error
        logger.info(f"Saved checkpoint {path}.")
        self._numbered = self._numbered_with(os.path.basename(path))
        self._remove_old()

    def _require_finite(self, path: str, data: Dict[str, Any]) -> None:
        bad = self._nonfinite(data)
        if not bad:
            return
        last = self._tagged() or next(iter(self.candidates()), "")
        kept = f"{last} is the last good one" if last else "there is no earlier one"
        raise NonFiniteLossError(
            f"{path} is not written, because {_shown(bad)} not finite; {kept}: lower the learning "
            "rate, or clip the gradients, and start again with --resume."
        )

    def _load_model(self, checkpoint: Dict[str, Any]) -> _IncompatibleKeys:
        incompatible = super()._load_model(checkpoint)
        bad = self._nonfinite({"model": self.model.state_dict()})
        if bad:
            raise RunError(
                f"The weights {self._path} cannot be used, because {_shown(bad)} not finite; give "
                "another file."
            )
        return incompatible

    def _nonfinite(self, data: Dict[str, Any]) -> List[str]:
        """What of a checkpoint's content is not finite, but was when the model was made."""
        parts = {key: value for key, value in data.items() if key in _OF_TRAINING}
        return [n for n in nonfinite_tensors(parts) if not n.endswith(tuple(self._infinite))]

    def adopt(self, data: Dict[str, Any]) -> None:
        """The checkpoints that a run wrote are those of the run that goes on from its last one.

        Args:
            data: what :meth:`load` returned.
        """
        self._numbered = [n for n in map(str, data.get("checkpoints", [])) if _NUMBERED.match(n)]

    def remove_leftovers(self) -> None:
        """Remove what killed runs left half written; no other run may use the folder."""
        with contextlib.suppress(OSError):
            for name in filter(_LEFTOVER.match, os.listdir(self.save_dir)):
                os.remove(os.path.join(self.save_dir, name))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as stream:
            stream.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        return bool(self.candidates())

    def candidates(self) -> List[str]:
        """Files that a run may resume from, the tagged one first, then the newest."""
        try:
            names = os.listdir(self.save_dir)
        except OSError:
            return []
        names = [n for n in names if _NUMBERED.match(n) or n == "model_final.pth"]
        paths = [os.path.join(self.save_dir, name) for name in names]
        paths.sort(key=lambda path: (os.path.getmtime(path), path), reverse=True)
        tagged = self._tagged()
        if tagged:
            paths = [tagged] + [path for path in paths if path != tagged]
        return paths

    def _tagged(self) -> str:
        """The file that ``last_checkpoint`` names, or "". That file may be damaged as well."""
        try:
            with open(os.path.join(self.save_dir, "last_checkpoint"), "rb") as stream:
                name = stream.read(4096).decode().strip()
            path = os.path.join(self.save_dir, os.path.basename(name))
            return path if os.path.isfile(path) else ""
        except (OSError, ValueError):
            return ""

    def get_checkpoint_file(self) -> str:
        """The newest undamaged checkpoint, as rank 0 finds it, or "" if there are none at all.

        Raises:
            DamagedCheckpointError: there are some, and all are damaged. A new run would overwrite
                what may still be saved of them.
        """
        chosen, damaged = "", []
        if comm.is_main_process():
            for path in self.candidates():
                problem = self._damage(path)
                if problem is None:
                    chosen = path
                    break
                logger.warning(f"Skipping the damaged checkpoint {path} ({problem}).")
                damaged.append(os.path.basename(path))
        chosen, damaged = comm.all_gather((chosen, damaged))[0]
        if damaged and not chosen:
            raise DamagedCheckpointError(
                f"All checkpoints in {self.save_dir} are damaged ({', '.join(damaged)}); bring an "
                "undamaged copy back, or delete them to start over."
            )
        return chosen

    def _damage(self, path: str) -> Optional[str]:
        """What is wrong with a checkpoint file, or None.

        Checks every byte of the content against its checksum, then whether the file can be read:
        names and sizes in the archive have no checksum.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad is not None:
                return f"{bad} has a wrong checksum"
            tensors = self._nonfinite(self._torch_load(path))
            if tensors:
                return f"{_shown(tensors)} not finite"
        except UnsafeFileError:
            return None  # whole, and refused in its own words when it is loaded
        except Exception as error:  # of many kinds: a wrong bit may ask for another zip feature
            return str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        return None

    def _numbered_with(self, name: str) -> List[str]:
        if not _NUMBERED.match(name):
            return self._numbered
        return [*(other for other in self._numbered if other != name), name]

    def _remove_old(self) -> None:
        while 0 < self.max_to_keep < len(self._numbered):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(self.save_dir, self._numbered.pop(0)))

    def load(self, path: str, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """As in Detectron2; ``d2ext://`` and ``timm://`` names are weights of a backbone alone.

        Of a folder that ``d2ext export --format safetensors`` wrote, its weights."""
        path = weights_file(path) if path and "://" not in path else path
        self._path = path
        self._named = path if path and is_weights_name(path) else ""
        if path and "://" not in path and not os.path.isfile(path):
            what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
            raise MissingWeightsError(f"The checkpoint {path} {what}; correct the name.")
        try:
            return super().load(local_file(path) if self._named else path, *args, **kwargs)
        except URLError as error:
            raise RunError(
                f"{path} cannot be fetched ({reason_of(error)}); where there is a network, "
                f"download {_url_of(path)} and name the file in MODEL.WEIGHTS."
            ) from error

    def _load_file(self, filename: str) -> Dict[str, Any]:
        """As in Detectron2, but no file runs code: see :mod:`d2ext.safe_load`.

        Weights of a backbone alone, in the names of timm or torchvision, are renamed.
        """
        data = self._read_file(filename)
        if self._named.startswith("d2ext://"):
            data["model"] = in_timm_names(self._named, data["model"])
        if "__author__" in data:
            return data
        model: Any = getattr(self.model, "module", self.model)
        weights = backbone_weights(model, data["model"].get("state_dict", data["model"]))
        if weights is None:
            if self._named:
                raise RunError(
                    f"{self._named} fits no part of this model; set MODEL.BACKBONE.NAME to "
                    "build_timm_fpn_backbone and MODEL.TIMM.NAME to the network that the weights "
                    "are of."
                )
            return data
        logger.info(f"{self._named or filename}: {weights.report}")
        if weights.expects is not None and not weights.expects.fits(model):
            logger.warning(
                f"{filename} was trained on {weights.expects}; set INPUT.FORMAT, MODEL.PIXEL_MEAN "
                "and MODEL.PIXEL_STD to that, or the backbone sees images that it does not know."
            )
        return {**data, "model": weights.state}

    def _read_file(self, filename: str) -> Dict[str, Any]:
        if filename.endswith(".pkl"):
            with open_regular(filename) as stream:
                data = load_arrays(stream, filename, allow_pickle=self.allow_pickle)
            if "model" in data and "__author__" in data:
                return data
            # Of Caffe2 or the first Detectron, whose detectors have everything in "blobs".
            blobs = data.get("blobs", data)
            blobs = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
            return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        if filename.endswith(".pyth"):
            state = self._torch_load(filename)["model_state"]
            state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
            return {"model": state, "__author__": "pycls", "matching_heuristics": True}
        data = super()._load_file(filename)
        if filename.endswith(".safetensors"):
            data = {**safetensors_description(filename), **data}
        return data

    def _torch_load(self, f: str) -> Dict[str, Any]:
        return load_tensors(f, allow_pickle=self.allow_pickle)

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        self.last_incompatible = incompatible
        super()._log_incompatible_keys(incompatible)


class MissingWeightsError(RunError, AssertionError):
    """There is no such file; Detectron2 asserts that there is."""


def _url_of(path: str) -> str:
    """Where a ``detectron2://`` name is fetched from."""
    prefix = Detectron2Handler.PREFIX
    found = Detectron2Handler.S3_DETECTRON2_PREFIX + path[len(prefix) :]
    return found if path.startswith(prefix) else path


def _shown(bad: List[str]) -> str:
    """Tensors with numbers that are not finite, as the subject of a sentence and its verb."""
    return f"{bad[0]} is" if len(bad) == 1 else f"{bad[0]} and {len(bad) - 1} more tensors are"


def plain(value: Any, path: str = "checkpoint") -> Any:
    """``value`` as tensors, numbers, strings and plain containers, which load safely.

    Args:
        value: anything; numpy arrays and numbers are converted.
        path: where the value stands, for the error.
    """
    if isinstance(value, torch.Tensor):
        return value.detach()
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        # Subclasses (an enum, say) are reduced to the built-in type they derive from.
        return _builtin(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, dict):
        items = {plain(k, path): plain(v, f"{path}.{k}") for k, v in value.items()}
        if not hasattr(value, "_metadata"):
            return items
        # A module's state dict carries the versions of its layers, which loading looks at.
        state: Any = OrderedDict(items)
        state._metadata = value._metadata
        return state
    if isinstance(value, (list, tuple)):
        entries = [plain(v, f"{path}.{k}") for k, v in enumerate(value)]
        return tuple(entries) if isinstance(value, tuple) else entries
    raise TypeError(
        f"{path} is a {type(value).__name__}, which a checkpoint cannot hold; return tensors, "
        "numbers, strings, lists and dicts from state_dict()."
    )


def _builtin(value: Any) -> Any:
    kinds: Tuple[Any, ...] = (bool, int, float, str, bytes)
    for kind in kinds:
        if isinstance(value, kind):
            return kind(value) if type(value) is not kind else value
    return value
