"""What a config, its files and overrides are refused with, as one sentence."""

import contextlib
from typing import Iterator

from .._files import RunError, sentence_of

__all__ = ["one_sentence"]


@contextlib.contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Errors of d2ext, Detectron2, yacs and PyYAML about the config ``name`` as a `RunError`."""
    try:
        yield
    except (TypeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{name} cannot be read as a config ({error}); give a YAML file with sections of keys."
        ) from error
    except (KeyError, ValueError, AssertionError, OSError) as error:
        raise RunError(sentence_of(error)) from error
