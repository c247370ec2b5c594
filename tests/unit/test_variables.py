"""No secret leaves through the environment, whatever it is called and wherever it stands."""

from __future__ import annotations

import json
import os
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bisect_tool.environments.variables import (
    ALLOWED,
    WITHHELD,
    is_allowed,
    is_secret,
    safe_text,
    telling_variables,
    without_credentials,
    without_home,
)

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Other work may hold the processor."""

WORDS = (
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "API_KEY",
    "ACCESS_KEY_ID",
    "CREDENTIALS",
    "AUTH",
    "PRIVATE_KEY",
    "COOKIE",
)
PREFIXES = [pattern.rstrip("*") for pattern in ALLOWED]
NAMES = st.text(string.ascii_uppercase + "_", max_size=6)
SECRETS = st.one_of(
    st.text(string.ascii_letters + string.digits, min_size=32, max_size=40).filter(
        lambda t: any(c.isdigit() for c in t) and any(c.isalpha() for c in t) and len(set(t)) > 12
    ),
    st.from_regex(r"\A(ghp_|hf_|sk-|glpat-|AKIA)[A-Z0-9a-z]{16,30}\Z"),
    st.from_regex(r"\Ahttps://[a-z]{1,8}:[a-z0-9]{6,12}@[a-z]{3,9}\.org/x\Z"),
    st.from_regex(r"\A(password|token|api_key|secret)=[a-z0-9]{4,12}\Z"),
)


@UNHURRIED
@given(st.sampled_from(PREFIXES), NAMES, st.sampled_from(WORDS), NAMES, st.text(max_size=20))
def test_names_of_secrets_are_left_out(prefix: str, before: str, word: str, after: str, value: str) -> None:
    """A variable with a secret's name is not told, even with the beginning of one that is."""
    assert {} == telling_variables({f"{prefix}{before}_{word}_{after}": value})


@UNHURRIED
@given(
    st.dictionaries(st.one_of(NAMES, st.builds(str.__add__, st.sampled_from(PREFIXES), NAMES)), st.text(max_size=30))
)
def test_only_names_of_the_list_are_told(variables: dict[str, str]) -> None:
    """Whatever else is set stays here."""
    told = telling_variables(variables)
    assert all(name in variables and name.startswith(tuple(PREFIXES)) for name in told)


@UNHURRIED
@given(
    st.sampled_from(PREFIXES), SECRETS, st.sampled_from(["", "x ", "0,", "path:"]), st.sampled_from(["", " y", ",1"])
)
def test_values_that_look_like_secrets_are_withheld(prefix: str, secret: str, before: str, after: str) -> None:
    """In a variable that is told, the value is not."""
    told = telling_variables({prefix: before + secret + after})
    assert secret not in json.dumps(told)
    assert set(told.values()) <= {WITHHELD}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMP_NUM_THREADS", "8"),
        ("OMP_PLACES", "{0:4}:4:4"),
        ("MKL_CBWR", "AVX512,STRICT"),
        ("OPENBLAS_CORETYPE", "SkylakeX"),
        ("NUMEXPR_MAX_THREADS", "16"),
        ("NVIDIA_TF32_OVERRIDE", "0"),
        ("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
        ("PYTHONHASHSEED", "4294967295"),
        ("CUDA_VISIBLE_DEVICES", "0,1,2,3"),
        ("TORCH_CUDA_ARCH_LIST", "7.0;7.5;8.0;8.6;9.0+PTX"),
        ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512,expandable_segments:True"),
        ("ORT_DISABLE_FLASH_ATTENTION", "1"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"),
        ("KMP_AFFINITY", "granularity=fine,compact,1,0"),
        ("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
    ],
)
def test_what_steers_numbers_is_told(name: str, value: str) -> None:
    assert {name: value} == telling_variables({name: value})


@pytest.mark.parametrize("name", ["HOME", "USER", "PATH", "TF_CLI_CONFIG_FILE", "MY_OMP_NUM_THREADS", "SSH_AUTH_SOCK"])
def test_other_names_are_not_told(name: str) -> None:
    assert not is_allowed(name)


def test_home_folders_name_nobody() -> None:
    assert "~/cuda:~/b" == without_home("/home/alice/cuda:/Users/bob/b")
    assert os.path.expanduser("~") not in safe_text(os.path.join(os.path.expanduser("~"), "cache"))


def test_places_and_users_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries set some variables on their own, to folders that have the user's name."""
    monkeypatch.setenv("LOGNAME", "carol")
    told = telling_variables(
        {
            "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor_carol",
            "TORCH_HOME": "/data/carol",
            "CUDA_HOME": "/usr/local/cuda-12.1",
            "OMP_TOOL_LIBRARIES": "/opt/carol/tool.so",
        }
    )
    assert {"CUDA_HOME": "/usr/local/cuda-12.1", "OMP_TOOL_LIBRARIES": "/opt/USER/tool.so"} == told


def test_credentials_leave_requirements() -> None:
    assert "x @ git+https://host.org/x" == without_credentials("x @ git+https://me:pw@host.org/x")
    assert WITHHELD == without_credentials("x @ https://host.org/x?token=abc")
    assert not is_secret("https://host.org/x")
