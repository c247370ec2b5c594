"""Which environment variables may be written down, and what must never be: anything that could be a secret.

Two gates. A name must be on the list of those that steer numeric libraries, and must not speak of a secret. A value must
not look like one either; where it does, only that the variable is set is told.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping

WITHHELD = "(withheld: looks like a secret)"

ALLOWED = (
    *("OMP_*", "KMP_*", "GOMP_*", "MKL_*", "OPENBLAS_*", "GOTO_*", "BLIS_*", "VECLIB_*", "NUMEXPR_*", "TBB_*"),
    *("NPY_*", "NUMBA_*", "DNNL_*", "ONEDNN_*", "ATEN_*", "TORCH_*", "TORCHINDUCTOR_*", "TORCHDYNAMO_*", "PYTORCH_*"),
    *("ORT_*", "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "CUBLAS_*", "CUBLASLT_*", "CUDNN_*", "CUDA_*"),
    *("NCCL_*", "HIP_*", "ROCR_*", "HSA_*", "MIOPEN_*", "XLA_*", "JAX_*", "OPENCV_*"),
    *("TF_DETERMINISTIC_OPS", "TF_CUDNN_*", "TF_ENABLE_*", "TF_DISABLE_*", "TF_XLA_*", "TF_NUM_*", "TF_FORCE_*"),
    *("PYTHONHASHSEED", "PYTHONOPTIMIZE", "LD_PRELOAD", "MALLOC_*", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE"),
    *("LANG", "LC_ALL", "LC_NUMERIC", "LC_COLLATE", "TZ"),
)
"""Names, or their beginnings."""

_ALLOWED = re.compile("|".join(re.escape(p[:-1]) + r"\w*" if p.endswith("*") else re.escape(p) for p in ALLOWED))
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASS(WORD|WD|PHRASE)|PWD|KEY|CREDENTIAL|AUTH|COOKIE|PRIVATE|CERT|SIGNATURE|LICEN[CS]E|BEARER|OAUTH"
    r"|ACCOUNT|USER|EMAIL|PROXY|WEBHOOK|DSN|SALT"
)
_PLACE_NAME = re.compile(
    r".*_(DIR|DIRS|DIRECTORY|FOLDER|CACHE|CACHE_PATH|FILE|LOG|LOGS|ROOT|HOST|ADDR|ADDRESS|HUB|HOME)"
)
"""Places change no number, name their user often, and are set by libraries on their own."""
_TELLING_PLACES = ("CUDA_HOME", "CUDA_ROOT")
"""But these have a version in them as a rule."""
_SECRET_VALUE = re.compile(
    r"://[^/\s]*@"  # a URL with a user, and a password perhaps
    r"|-----BEGIN"
    r"|\b(AKIA|ASIA)[0-9A-Z]{8,}"
    r"|\b(gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|pypi-|npm_|ya29\.|AIza|eyJ)"
    r"|(token|secret|passw(or)?d|passphrase|api[-_]?key|credential|bearer|authorization|access[-_]?key|signature)",
    re.IGNORECASE,
)
_LONG = 20
"""Letters from which on a piece of a value is asked how random it looks."""
_RANDOM = 3.2
"""Bits a letter; 32 hexadecimal digits have 3.3 or more as a rule, English words and lists of sizes less."""


def is_allowed(name: str) -> bool:
    """Whether a variable of this name may be told at all."""
    if _ALLOWED.fullmatch(name) is None or _SECRET_NAME.search(name.upper()) is not None:
        return False
    return name in _TELLING_PLACES or _PLACE_NAME.fullmatch(name) is None


def is_secret(value: str) -> bool:
    """Whether a value looks like a token, a key, a password, or a URL with one in it."""
    if _SECRET_VALUE.search(value):
        return True
    return any(_looks_random(piece) for piece in re.split(r"[\s,;:=/\\|.()\[\]{}\"']+", value))


def _looks_random(piece: str) -> bool:
    if len(piece) < _LONG or not re.search(r"\d", piece) or not re.search(r"[A-Za-z]", piece):
        return False
    counts = Counter(piece)
    return -sum(n / len(piece) * math.log2(n / len(piece)) for n in counts.values()) > _RANDOM


def safe_text(text: str, limit: int = 300) -> str:
    """Text that somebody else wrote, in one line, without secrets and without the names of home folders."""
    line = " ".join(text.split())[:limit]
    return WITHHELD if is_secret(line) else without_home(line)


def without_home(text: str) -> str:
    """``~`` for home folders, which name a user."""
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?=$|[/\\:;,\s])", "~", text)
    text = re.sub(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\:;,\s]+", "~", text)
    user = _user()
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(user)}(?![A-Za-z0-9])", "USER", text) if len(user) > 2 else text


def _user() -> str:
    return next((value for name in ("LOGNAME", "USER", "LNAME", "USERNAME") if (value := os.environ.get(name))), "")


def telling_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that may change numbers, by name, sorted; secrets are left out or withheld."""
    return {name: safe_text(environment[name]) for name in sorted(environment) if is_allowed(name)}


def without_credentials(text: str) -> str:
    """A requirement or URL without the user and the password in it; withheld where it still looks like a secret."""
    bare = re.sub(r"://[^/\s]*@", "://", text)
    return WITHHELD if _SECRET_VALUE.search(bare) else bare
