"""The configuration pairs of a run, and the plain one that serves to align."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bisect_tool.backends.case import LoadedCase
from bisect_tool.backends.torch_runner import float_dtype_of
from bisect_tool.pipeline.options import Options
from bisect_tool.records import ConfigPair, NumericConfig, OnnxGraph


def wanted_pairs(case: LoadedCase, options: Options, graph: OnnxGraph) -> list[ConfigPair]:
    """The pairs to run: the user's, or both sides on the CPU at the levels that are asked for."""
    if options.pairs:
        return list(options.pairs)
    runner = options.runner
    if runner == "onnxruntime":
        return [_pair(case, options, graph, level) for level in options.optimizations]
    pair = _pair(case, options, graph, "off")
    return [replace(pair, name=runner, actual=replace(pair.actual, backend=runner, threads=0))]


def base_pair(pairs: Sequence[ConfigPair], case: LoadedCase, options: Options, graph: OnnxGraph) -> ConfigPair:
    """The pair that serves to align: both sides on the CPU, plain, nothing fused. It need not be one of the report's."""
    for pair in pairs:
        own = pair.actual.backend == "onnxruntime" and pair.actual.optimization == "off"
        if own and is_plain(pair.expected, options) and is_plain(pair.actual, options):
            return pair
    return replace(_pair(case, options, graph, "off"), name="(alignment)", gating=False)


def is_plain(config: NumericConfig, options: Options) -> bool:
    """Whether a side runs on the CPU as it would by itself."""
    default = options.threads if config.backend == "onnxruntime" else torch.get_num_threads()
    return config.device == "cpu" and not config.switches and config.threads in (0, default)


def by_expected(
    pairs: Sequence[ConfigPair], base: ConfigPair, options: Options
) -> list[tuple[NumericConfig, list[ConfigPair]]]:
    """Pairs that can be compared with one and the same PyTorch run, the one that served to align first."""
    groups: list[tuple[NumericConfig, list[ConfigPair]]] = [(base.expected, [])]
    for pair in pairs:
        for expected, members in groups:
            if expected == pair.expected or (is_plain(expected, options) and is_plain(pair.expected, options)):
                members.append(pair)
                break
        else:
            groups.append((pair.expected, [pair]))
    return groups


def _pair(case: LoadedCase, options: Options, graph: OnnxGraph, optimization: str) -> ConfigPair:
    dtype = float_dtype_of(case.module)
    made = options.onnx is None
    export = options.export
    return ConfigPair(
        name=f"ort-cpu-{optimization}",
        expected=NumericConfig("torch", dtype=dtype, threads=torch.get_num_threads()),
        actual=NumericConfig(
            "onnxruntime",
            dtype=dtype,
            optimization=optimization,
            threads=options.threads,
            exporter=export.exporter if made else graph.exporter,
            opset=export.opset,
            constant_folding=export.constant_folding if made else None,
        ),
    )
