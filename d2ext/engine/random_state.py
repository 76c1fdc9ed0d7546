"""Random states: seeding, saving and restoring all of a process's generators."""

import contextlib
import logging
import random
from typing import Any, Dict, Iterator

import numpy as np
import torch

__all__ = [
    "get_random_state",
    "isolated_random_state",
    "sample_seed",
    "seed_cpu",
    "set_deterministic",
    "set_random_state",
]

logger = logging.getLogger(__name__)


def get_random_state() -> Dict[str, Any]:
    """The state of python's, numpy's and torch's generators, as tensors and plain containers."""
    legacy: Any = np.random.get_state()
    _, keys, position, has_gauss, gauss = legacy
    state = {
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Dict[str, Any]) -> None:
    """Restore what :func:`get_random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = state["numpy"]
    np.random.set_state(
        (
            "MT19937",
            numpy_state["keys"].numpy().astype(np.uint32),
            numpy_state["position"],
            numpy_state["has_gauss"],
            numpy_state["gauss"],
        )
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def isolated_random_state() -> Iterator[None]:
    """Whatever random numbers the block draws, the generators go on as if it had not run."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda_state = torch.cuda.get_rng_state() if on_cuda else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)


def sample_seed(*words: int) -> int:
    """A 32-bit seed from several numbers; near inputs give unrelated seeds."""
    return int(np.random.SeedSequence(list(words)).generate_state(1)[0])


def seed_cpu(seed: int) -> None:
    """Seed python, numpy and torch's CPU generator.

    ``torch.manual_seed`` would reset the CUDA generators too, which a data loader without worker
    processes must leave alone: dropout draws from them in the same process.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def set_deterministic(enabled: bool) -> None:
    """Prefer deterministic algorithms; torch warns where it lacks one."""
    if not enabled:
        return
    import os

    # cuBLAS reads this when its first handle is made, so it comes before the model.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    logger.info("Deterministic algorithms are on.")
