"""Reports built by hand, for the tests of everything that prints or stores one. The numbers are invented."""

from __future__ import annotations

import base64
import math
from dataclasses import replace

from bisect_tool.records import (
    Alignment,
    Comparison,
    Conclusion,
    ConfigRun,
    Diagnosis,
    ErrorMetrics,
    ErrorPicture,
    FirstOverTolerance,
    Hypothesis,
    Judgement,
    Level,
    NumericConfig,
    Origin,
    OutputResult,
    Pair,
    Report,
    Role,
    RuledOut,
    SideCost,
    StageRef,
    StageRow,
    Tolerance,
    Unaligned,
    Verdict,
)

TORCH = NumericConfig("torch", dtype="float32", threads=2)
ORT_OFF = NumericConfig("onnxruntime", dtype="float32", optimization="off", threads=2, exporter="dynamo", opset=20)
ORT_ALL = replace(ORT_OFF, optimization="all")
TOLERANCE = Tolerance("default", rel_l2={"float32": 1e-4, "float16": 2e-2})
CASE = {
    "name": "ckpt",
    "model": "model.py",
    "checkpoint": "ckpt.pth",
    "onnx": None,
    "inputs": ["sample.pt"],
    "exporter": "dynamo",
    "command": ["bisect-divergence", "model.py", "ckpt.pth", "--input", "sample file.pt"],
}
ENVIRONMENT = {"python": "3.11.7", "torch": "2.13.0", "onnxruntime": "1.31.1", "cpu": {"cores": 2, "avx512": True}}


def metrics(
    rel: float, *, count: int = 50176, problem: str | None = None, differing: int | None = None
) -> ErrorMetrics:
    """Plausible metrics for a relative error, of a tensor whose values are about 1."""
    db = (
        math.inf
        if rel == 0
        else math.nan
        if math.isnan(rel)
        else -20 * math.log10(rel)
        if rel < math.inf
        else -math.inf
    )
    return ErrorMetrics(
        count=count,
        max_abs=8 * rel,
        mean_abs=rel / 2,
        rel_l2=rel,
        max_rel=20 * rel,
        cosine=1 - min(rel, 1.0) ** 2 / 2 if rel < math.inf else math.nan,
        sqnr_db=db,
        max_ulp=rel * 2**23,
        p99_abs=3 * rel,
        nonfinite_expected=0,
        nonfinite_actual=0,
        nonfinite_mismatch=0,
        differing=(0 if rel == 0 else count // 4) if differing is None else differing,
        worst_index=(0, 17, 0, 27),
        worst_expected=1.2742,
        worst_actual=1.2742 - 8 * rel,
        problem=problem,
    )


def comparison(
    total: float,
    local: float | None,
    input_error: float | None = None,
    *,
    judgement: Judgement | None = None,
    floor: float | None = 1e-7,
) -> Comparison:
    """A comparison whose growth, noise ratio and judgement follow from its errors."""
    growth = total / input_error if input_error else None
    return Comparison(
        total=metrics(total),
        local=None if local is None else metrics(local),
        input_error=input_error,
        growth=growth,
        amplification=None if growth is None or local is None else 0.9 * growth,
        floor=floor,
        noise_ratio=None if local is None or floor is None else local / floor,
        judgement=judgement or ("pass" if total <= 1e-4 else "fail"),
    )


def row(
    index: int,
    stage: str,
    kind: str,
    results: dict[str, Comparison],
    *,
    group: str = "",
    shape: tuple[int, ...] = (1, 64, 28, 28),
    level: Level = "leaf",
    call: int = 0,
    output: int | str = 0,
    line: int | None = None,
    role: Role = "judged",
) -> StageRow:
    """A row of the stage table, with names that follow from the stage's."""
    path = "/" + stage.replace(".", "/")
    return StageRow(
        index=index,
        stage=stage,
        call=call,
        output=output,
        level=level,
        type=kind,
        source=f"model.py:{line or 20 + index}",
        shape=shape,
        dtype="float32",
        group=group,
        inputs=(index - 1,) if index else (),
        alias_of=None,
        onnx_value=f"{path}_output_0" if results else None,
        onnx_nodes=(f"{path}/{kind}",) if results else (),
        results=results,
        role=role,
    )


def picture(**changes: object) -> ErrorPicture:
    """Of a tensor whose border is off: a ring of large errors around rounding, on a ramp."""
    side = 28
    ring = bytes(254 if 0 in (x, y) or side - 1 in (x, y) else 20 + x for y in range(side) for x in range(side))
    ramp = bytes(254 * (x + y) // (2 * side - 2) for y in range(side) for x in range(side))
    base = ErrorPicture(
        of="local",
        axes=(2, 3),
        rows=side,
        columns=side,
        high=0.5,
        error=base64.b64encode(ring).decode(),
        expected_low=-1.0,
        expected_high=2.5,
        expected=base64.b64encode(ramp).decode(),
        histogram=(*(0,) * 4, 17000, 26000, *(0,) * 55, 300, 1200, 5412),
        equal=264,
        nonfinite=0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def alignment(rows: list[StageRow], unaligned: tuple[Unaligned, ...] = ()) -> Alignment:
    """An alignment of every row that was compared."""
    leaves = [row for row in rows if row.role != "group"]
    pairs = [Pair(row.ref, row.onnx_value, ("scope", "value")) for row in leaves if row.onnx_value is not None]
    lost = sum(item.in_graph for item in unaligned)
    total = len(pairs) + lost
    return Alignment(
        pairs=tuple(pairs),
        unaligned=unaligned,
        unmatched_onnx=("/Shape_output_0",),
        stages=len(pairs) + len(unaligned),
        aligned=len(pairs),
        coverage=len(pairs) / total if total else None,
    )


def cost(seconds: float, device_mb: float | None = None) -> SideCost:
    """What plain runs of one side cost, with a spread of a tenth."""
    return SideCost(seconds, seconds * 0.95, seconds * 1.05, 5, device_mb)


def config_run(name: str, actual: NumericConfig, rel: float | None, **changes: object) -> ConfigRun:
    """A configuration that ran, with one final output of the given error."""
    outputs: tuple[OutputResult, ...] = ()
    if rel is not None:
        outputs = (OutputResult(0, "output", metrics(rel, count=1000), "pass" if rel <= 1e-4 else "fail"),)
    base = ConfigRun(
        name=name,
        expected=TORCH,
        actual=actual,
        effective={"providers": ["CPUExecutionProvider"], "nodes": 12, "threads": 2},
        gating=True,
        status="agrees" if rel is not None and rel <= 1e-4 else "diverges",
        observer_effect=0.0,
        outputs=outputs,
        seconds=0.75,
        peak_rss_mb=512.5,
        expected_cost=cost(0.020),
        actual_cost=cost(0.0125),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def healthy() -> Report:
    """A small model that agrees; nothing is grouped."""
    errors = [1.1e-7, 1.3e-7, 1.2e-7, 0.0, 2.1e-7]
    names = [("conv1", "Conv2d"), ("relu", "ReLU"), ("pool", "MaxPool2d"), ("flatten#0", "flatten"), ("fc", "Linear")]
    rows = []
    for index, ((name, kind), rel) in enumerate(zip(names, errors, strict=True)):
        result = comparison(rel, min(rel, 9e-8), errors[index - 1] if index else None)
        rows.append(row(index, name, kind, {"ort-off": result}, shape=(1, 10) if name == "fc" else (1, 64, 28, 28)))
    return Report(
        case=CASE,
        verdict=Verdict("agrees", ("PyTorch and ONNX Runtime agree at every one of 5 stages.",), None, ()),
        tolerance=TOLERANCE,
        alignment=alignment(rows),
        configs=(config_run("ort-off", ORT_OFF, 2.1e-7),),
        stages=tuple(rows),
        environment=ENVIRONMENT,
        timings={"load": 0.25, "export": 1.5, "compare": 0.125},
    )


def diverging() -> Report:
    """Two containers and a wrong Resize between them; one stage is folded away and one was lost."""
    path = [
        ("stem.conv", "Conv2d", 1.1e-7, 1.1e-7),
        ("stem.relu", "ReLU", 1.2e-7, 0.0),
        ("layer2.0.conv1", "Conv2d", 2.0e-7, 1.5e-7),
        ("layer2.0.conv2", "Conv2d", 2.2e-7, 1.5e-7),
        ("layer2.0/add#0", "add", 2.1e-7, 5e-8),
        ("layer3.upsample", "Upsample", 4.8e-2, 4.8e-2),
        ("layer3.conv", "Conv2d", 3.9e-2, 2.0e-7),
        ("head.fc", "Linear", 5.2e-2, 2.1e-7),
    ]
    rows, before = [], None
    for index, (name, kind, total, local) in enumerate(path):
        result = comparison(total, local, before)
        optimised = comparison(total, None, before, floor=None)
        group = name.rpartition("/" if "/" in name else ".")[0]
        rows.append(row(index, name, kind, {"ort-off": result, "ort-all": optimised}, group=group))
        before = total
    rows.insert(2, row(8, "stem.bn", "BatchNorm2d", {}, group="stem"))
    rows[0], rows[-1] = replace(rows[0], shape=(1, 64, 112, 112)), replace(rows[-1], shape=(1, 1000))
    groups = [
        row(
            9, "layer2", "Sequential", {"ort-off": comparison(2.1e-7, 2.0e-7, 1.2e-7)}, level="container", role="group"
        ),
        row(
            10, "layer3", "Sequential", {"ort-off": comparison(3.9e-2, 3.9e-2, 2.1e-7)}, level="container", role="group"
        ),
    ]
    rows = [replace(item, index=index) for index, item in enumerate(rows)]
    found = rows[6].results
    upsample = rows[6] = replace(
        rows[6],
        source="model.py:41",
        onnx_nodes=("/layer3/upsample/Resize",),
        results={**found, "ort-off": replace(found["ort-off"], picture=picture())},
    )
    origin = Origin(
        stage=upsample.stage,
        call=0,
        output=0,
        type="Upsample",
        source="model.py:41",
        onnx_value="/layer3/upsample_output_0",
        onnx_nodes=("/layer3/upsample/Resize",),
        config="ort-off",
        local_rel_l2=4.8e-2,
        noise_ratio=4.8e5,
        side="actual",
    )
    verdict = Verdict(
        status="diverges",
        summary=(
            "The divergence starts at layer3.upsample (Upsample), and the error is made there.",
            "3 of 8 stages are over tolerance; the stages after it only hand the error on.",
        ),
        first_over_tolerance=FirstOverTolerance("layer3.upsample", 0, 0, "ort-off"),
        origins=(origin,),
        amplifiers=(StageRef("layer3.conv", 0, 0), StageRef("head.fc", 0, 0)),
        diagnoses=(
            Diagnosis(
                code="BD103",
                title="resize-coordinates",
                evidence=(
                    "the same error without optimisation, so no fusion makes it",
                    "replay with coordinate_transformation_mode=pytorch_half_pixel agrees (3e-07)",
                ),
                remedy="the node says `asymmetric`; set pytorch_half_pixel (opset 11 or later)",
                remedy_verified=True,
                cost="none",
            ),
        ),
        ruled_out=(RuledOut("BD101", "TF32", ("both sides ran on the CPU",)),),
    )
    unaligned = (
        Unaligned(StageRef("stem.bn", 0, 0), "folded into stem.conv by the exporter", False),
        Unaligned(StageRef("aux.fc", 0, "logits"), "two values of the graph match equally well", True),
    )
    cuda = replace(ORT_ALL, device="cuda")
    return Report(
        case=CASE,
        verdict=verdict,
        tolerance=TOLERANCE,
        alignment=alignment(rows, unaligned),
        configs=(
            config_run("ort-off", ORT_OFF, 5.2e-2),
            config_run("ort-all", ORT_ALL, 5.2e-2, observer_effect=3.1e-8),
            config_run("half-emulated", ORT_OFF, 6.1e-2, gating=False, observer_effect=None),
            config_run(
                "ort-cuda",
                cuda,
                None,
                status="skipped",
                effective={},
                observer_effect=None,
                skipped_reason="ONNX Runtime offers no CUDAExecutionProvider on this machine",
            ),
        ),
        stages=(*rows, *groups),
        environment=ENVIRONMENT,
        timings={"load": 0.25, "export": 1.5, "compare": 0.125},
        notes=("ckpt.pth holds 2 keys that the model does not have: ema.decay, ema.step",),
    )


def read_back(nodes: int, changed: dict[str, list[int]], **expected: object) -> dict[str, object]:
    """What a pair of a matrix reads back, ONNX Runtime's side on the device of PyTorch's."""
    device = str(expected.get("device", "cpu"))
    providers = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    actual = {
        "providers": providers,
        "provider_options": {},
        "optimization": "off",
        "threads": 0,
        "switches": {},
        "unconfirmed": [],
        "nodes": {"Conv": nodes - 2, "Relu": 2},
        "changed": changed,
        "placement": {providers[0]: nodes},
    }
    return {"expected": {"device": "cpu", "threads": 2, **expected}, "actual": actual}


def hypothesis(
    switch: str,
    title: str,
    after: str,
    error_after: float | None,
    error_back: float | None,
    time_cost: float | None,
    conclusion: Conclusion,
) -> Hypothesis:
    """One of PyTorch's switches, left unset in ``ort-cuda-off`` and tried there."""
    return Hypothesis(
        side="torch",
        switch=switch,
        title=title,
        before=None,
        after=after,
        failing="ort-cuda-off",
        passing="no-conv-tf32",
        tried=f"ort-cuda-off-try-{switch}",
        error_before=2.4e-3,
        error_after=error_after,
        error_passing=4.0e-7,
        error_back=error_back,
        time_cost=time_cost,
        conclusion=conclusion,
    )


def matrix() -> Report:
    """Pairs of a matrix: they agree, diverge, were skipped, failed and crashed; TF32 in convolutions is to blame."""
    cpu, cuda = replace(TORCH, threads=0), replace(TORCH, threads=0, device="cuda")
    off, all_ = replace(ORT_OFF, threads=0), replace(ORT_ALL, threads=0)
    off_cuda = replace(off, device="cuda")
    plain = replace(off_cuda, dtype=None, threads=0, exporter=None, opset=None)
    missing = "ONNX Runtime's TensorRT provider cannot be loaded: libnvinfer.so.10 is missing"
    none: dict[str, object] = {"outputs": (), "effective": {}, "observer_effect": None, "peak_rss_mb": 0.0}
    none |= {"expected_cost": None, "actual_cost": None}
    convolutions = read_back(14, {}, device="cuda", matmul_tf32_seen=False, conv_tf32_seen=True)
    configs = (
        config_run("ort-cpu-off", off, 3.0e-7, expected=cpu, effective=read_back(14, {})),
        config_run(
            "ort-cpu-all",
            all_,
            3.1e-7,
            expected=cpu,
            effective=read_back(9, {"Conv": [12, 7]}),
            actual_cost=cost(0.0075),
        ),
        config_run("ort-cuda-off", off_cuda, 2.4e-3, expected=cuda, effective=convolutions, peak_rss_mb=1830.0),
        config_run(
            "no-conv-tf32",
            off_cuda,
            4.0e-7,
            expected=replace(cuda, switches={"cudnn_conv_tf32": False}),
            effective=read_back(
                14, {}, device="cuda", cudnn_conv_tf32=False, matmul_tf32_seen=False, conv_tf32_seen=False
            ),
            gating=False,
            expected_cost=cost(0.021),
        ),
        config_run(
            "tf32-emulated",
            off,
            2.2e-3,
            expected=replace(cpu, switches={"emulate": "tf32"}),
            effective=read_back(
                14, {}, emulate="tf32", emulate_rounded={"convolution": 2, "addmm": 1}, emulate_unreached={"rnn": 1}
            ),
            gating=False,
            expected_cost=None,
        ),
        config_run("trt", plain, None, expected=cuda, status="skipped", skipped_reason=missing, gating=False, **none),
        config_run(
            "trt-fp16", plain, None, expected=cuda, status="skipped", skipped_reason=missing, gating=False, **none
        ),
        config_run(
            "export-torchscript",
            replace(off, exporter="torchscript"),
            None,
            expected=cpu,
            status="failed",
            skipped_reason="the exporter has no symbolic for aten::bucketize",
            gating=False,
            **none,
        ),
        config_run(
            "cuda-attention-efficient",
            plain,
            None,
            expected=replace(cuda, switches={"sdpa_kernel": "efficient_attention"}),
            status="crashed",
            skipped_reason="its process was ended by signal 11 (segmentation fault)",
            gating=False,
            **none,
        ),
        config_run(
            "ort-cuda-off-try-1",
            off_cuda,
            2.4e-3,
            expected=replace(cuda, switches={"matmul_tf32": False}),
            effective=read_back(14, {}, device="cuda", matmul_tf32=False, matmul_tf32_seen=False, conv_tf32_seen=True),
            gating=False,
        ),
        config_run(
            "ort-cuda-off-try-2",
            off_cuda,
            2.4e-3,
            expected=replace(cuda, switches={"channels_last": True}),
            effective=convolutions,
            gating=False,
        ),
    )
    path = [
        ("stem.conv", "Conv2d", 1.1e-7, 7.0e-4, 0.21),
        ("stem.relu", "ReLU", 1.2e-7, 0.0, 0.0),
        ("block.conv", "Conv2d", 1.9e-7, 1.4e-3, 0.75),
        ("block/add#0", "add", 1.8e-7, 4e-8, 0.0004),
        ("head.fc", "Linear", 3.0e-7, 2.0e-7, 0.0396),
    ]
    rows, before, handed_on = [], None, None
    total = 0.0
    for index, (name, kind, good, made, share) in enumerate(path):
        total = total + made if made > 1e-6 else total
        healthy_result = replace(comparison(good, min(good, 9e-8), before), share=0.2)
        tf32 = replace(comparison(total, made, handed_on, floor=None), share=share)
        results = {
            "ort-cpu-off": healthy_result,
            "ort-cpu-all": comparison(1.05 * good, None, before, floor=None),
            "ort-cuda-off": tf32,
            "no-conv-tf32": comparison(1.3 * good, None, before, floor=None),
            "tf32-emulated": replace(tf32, total=metrics(0.9 * total)),
            "ort-cuda-off-try-1": comparison(total, None, handed_on, floor=None),
            "ort-cuda-off-try-2": comparison(total, None, handed_on, floor=None),
        }
        group = name.rpartition("/" if "/" in name else ".")[0]
        rows.append(row(index, name, kind, results, group=group))
        before, handed_on = good, total
    rows[-1] = replace(rows[-1], shape=(1, 10))
    stem, block = rows[0], rows[2]
    origins = tuple(
        Origin(
            stage=item.stage,
            call=0,
            output=0,
            type=item.type,
            source=item.source,
            onnx_value=item.onnx_value or "",
            onnx_nodes=item.onnx_nodes,
            config="ort-cuda-off",
            local_rel_l2=local,
            noise_ratio=None,
            side="expected",
        )
        for item, local in ((stem, 7.0e-4), (block, 1.4e-3))
    )
    verdict = Verdict(
        status="diverges",
        summary=(
            "first diverging stage: stem.conv (ort-cuda-off); diverging: ort-cuda-off",
            "error is made in: stem.conv (local 7.0e-04), block.conv (local 1.4e-03)",
            "BD301: TF32 in cuDNN convolutions separates failing from passing",
        ),
        first_over_tolerance=FirstOverTolerance("stem.conv", 0, 0, "ort-cuda-off"),
        origins=origins,
        amplifiers=(StageRef("head.fc", 0, 0),),
        diagnoses=(
            Diagnosis(
                code="BD301",
                title="TF32 in cuDNN convolutions",
                evidence=(
                    "ort-cuda-off: diverges, relative L2 2.4e-03, largest difference 2.4; with PyTorch's "
                    "cudnn_conv_tf32 = 0: agrees, relative L2 4.0e-07, largest difference 0.05 (no-conv-tf32)",
                ),
                remedy="torch.backends.cudnn.allow_tf32 = False\n"
                'providers=[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]',
                remedy_verified=True,
                cost="+4 % time, +0 MB",
            ),
        ),
        ruled_out=(
            RuledOut(
                "BD301",
                "TF32 in matrix multiplication",
                ("ort-cuda-off with PyTorch's matmul_tf32 = 0 still diverges: relative L2 2.4e-03",),
            ),
            RuledOut(
                "BD301",
                "memory layout channels_last",
                ("ort-cuda-off with PyTorch's channels_last = 1 still diverges: relative L2 2.4e-03",),
            ),
        ),
        hypotheses=(
            hypothesis("cudnn_conv_tf32", "TF32 in cuDNN convolutions", "false", 4.0e-7, 2.4e-3, 0.04, "culprit"),
            hypothesis("matmul_tf32", "TF32 in matrix multiplication", "false", 2.4e-3, 4.0e-7, 0.01, "ruled out"),
            hypothesis("channels_last", "memory layout channels_last", "true", 2.4e-3, None, -0.12, "ruled out"),
        ),
    )
    return Report(
        case=CASE,
        verdict=verdict,
        tolerance=TOLERANCE,
        alignment=alignment(rows),
        configs=configs,
        stages=tuple(rows),
        environment=ENVIRONMENT,
        timings={"export": 1.5, **{f"pair {run.name}": 2.0 for run in configs}},
    )


def long() -> Report:
    """200 stages with long names in nested containers; the error is made twice, far apart, and grows."""
    rows, before, total = [], None, 1.1e-7
    made = {90: 3.0e-4, 150: 2.0e-3}
    for index in range(200):
        group = f"backbone.stages.{index // 50}.blocks.{index // 10 % 5}"
        name = f"{group}.layers.{index % 10}.convolution"
        local = made.get(index, 1.2e-7)
        total = local + 1.01 * total
        rows.append(row(index, name, "Conv2d", {"ort-off": comparison(total, local, before)}, group=group))
        before = total
    origins = tuple(
        Origin(
            stage=rows[index].stage,
            call=0,
            output=0,
            type="Conv2d",
            source=rows[index].source,
            onnx_value=rows[index].onnx_value or "",
            onnx_nodes=rows[index].onnx_nodes,
            config="ort-off",
            local_rel_l2=local,
            noise_ratio=local / 1e-7,
            side=None,
        )
        for index, local in made.items()
    )
    first = rows[90]
    verdict = Verdict(
        status="diverges",
        summary=(f"The divergence starts at {first.stage}.",),
        first_over_tolerance=FirstOverTolerance(first.stage, 0, 0, "ort-off"),
        origins=origins,
        amplifiers=tuple(row.ref for row in rows[91:100]),
    )
    return replace(
        healthy(),
        verdict=verdict,
        alignment=alignment(rows),
        configs=(config_run("ort-off", ORT_OFF, 5e-2),),
        stages=tuple(rows),
    )


def big() -> Report:
    """500 stages under two configurations, with several nodes each and a picture: about as large as a page gets."""
    rows, before, total = [], None, 1.1e-7
    made = {200: 3.0e-4, 380: 2.0e-3}
    for index in range(500):
        group = f"backbone.stages.{index // 125}.blocks.{index // 25 % 5}"
        name = f"{group}.layers.{index % 25}.convolution"
        local = made.get(index, 1.2e-7)
        total = local + 1.005 * total
        results = {"ort-off": comparison(total, local, before), "ort-all": comparison(1.01 * total, None, before)}
        rows.append(row(index, name, "Conv2d", results, group=group))
        before = total
    found = rows[200].results
    rows[200] = replace(rows[200], results={**found, "ort-off": replace(found["ort-off"], picture=picture())})
    origins = tuple(
        replace(long().verdict.origins[0], stage=rows[index].stage, local_rel_l2=local) for index, local in made.items()
    )
    verdict = replace(
        long().verdict,
        summary=(f"The divergence starts at {rows[200].stage}.",),
        first_over_tolerance=FirstOverTolerance(rows[200].stage, 0, 0, "ort-off"),
        origins=origins,
        amplifiers=tuple(row.ref for row in rows[201:220]),
    )
    runs = (config_run("ort-off", ORT_OFF, 5e-2), config_run("ort-all", ORT_ALL, 5e-2))
    return replace(healthy(), verdict=verdict, alignment=alignment(rows), configs=runs, stages=tuple(rows))


def empty() -> Report:
    """Nothing could be compared: the only configuration failed, and two stages were not found in the graph."""
    unaligned = tuple(
        Unaligned(StageRef(name, 0, 0), "no value of the graph has its shape and content", True) for name in ("a", "b")
    )
    return replace(
        healthy(),
        verdict=Verdict("inconclusive", ("Nothing was compared: no configuration ran.",), None, ()),
        alignment=alignment([], unaligned),
        configs=(
            config_run(
                "ort-off",
                ORT_OFF,
                None,
                status="failed",
                effective={},
                observer_effect=None,
                skipped_reason="[ONNXRuntimeError] 1 : FAIL : Load model failed",
            ),
        ),
        stages=(),
    )


def bare() -> Report:
    """No stages, no configurations, no names: the least that a report can be."""
    return Report(
        case={},
        verdict=Verdict("inconclusive", (), None, ()),
        tolerance=Tolerance("user", atol=1e-5, rtol=1e-3),
        alignment=Alignment((), (), (), 0, 0, None),
        configs=(),
        stages=(),
        environment={},
        timings={},
    )


SCRIPT = "<script>alert(1)</script>"
HOSTILE_NAMES = (
    "[red]x",
    SCRIPT,
    "[/bold] [link=file:///etc]y",
    "esc\x1b[31mred\nnew line",
    "\u202egnp.exe",
    "层.卷积" * 6,
    "$\\frac{1}{0$ ]]> --> {{ 7*7 }}",
    "lone\udcffsurrogate",
)


def hostile() -> Report:
    """Names that are markup, scripts, escapes, formulas or too wide; and numbers that are no numbers."""
    values = [1e-7, math.nan, math.inf, 0.0, 1e-300, 3e-5, 2e-6, 1e-7]
    rows = []
    for index, (name, rel) in enumerate(zip(HOSTILE_NAMES, values, strict=True)):
        judgement: Judgement = "fail" if not rel <= 1e-4 else "pass"
        result = comparison(rel, rel, 1e-7 if index else None, judgement=judgement)
        rows.append(row(index, name, name, {"[blue]ort": result}, group="[dim]group" if index > 4 else ""))
    mismatch = Comparison(
        total=metrics(math.nan, problem="shape (1, 3) against (1, 4)"),
        local=None,
        input_error=None,
        growth=None,
        amplification=None,
        floor=None,
        noise_ratio=None,
        judgement="fail",
    )
    rows.append(row(len(rows), "head", "Linear", {"[blue]ort": mismatch}, output="boxes[0]", call=2, shape=()))
    script = rows[1]
    origin = Origin(
        stage=script.stage,
        call=0,
        output=0,
        type=script.type,
        source=f"{SCRIPT}.py:3",
        onnx_value=SCRIPT,
        onnx_nodes=(SCRIPT, "[green]node"),
        config="[blue]ort",
        local_rel_l2=math.nan,
        noise_ratio=math.inf,
        side="expected",
    )
    verdict = Verdict(
        "diverges",
        (f"The divergence starts at {SCRIPT}", "[bold]two[/bold]"),
        FirstOverTolerance(SCRIPT, 0, 0, "[blue]ort"),
        (origin,),
        (StageRef(SCRIPT, 0, 0),),
        (Diagnosis(SCRIPT, SCRIPT, (SCRIPT,), SCRIPT, False, SCRIPT),),
        (RuledOut(SCRIPT, SCRIPT, (SCRIPT,)),),
    )
    lost = Unaligned(StageRef(SCRIPT, 0, SCRIPT), SCRIPT, True)
    return replace(
        healthy(),
        case={"name": SCRIPT, "command": ["bisect-divergence", SCRIPT], SCRIPT: SCRIPT},
        verdict=verdict,
        alignment=alignment(rows, (lost,)),
        configs=(config_run("[blue]ort", ORT_OFF, math.nan, status="diverges", effective={"x": SCRIPT}),),
        stages=tuple(rows),
        environment={SCRIPT: {SCRIPT: [SCRIPT, math.inf]}},
        timings={SCRIPT: 1.0},
        notes=(SCRIPT,),
    )


def hostile_matrix() -> Report:
    """The report of a matrix in which every text that a matrix adds is a script, and every read-back an odd one."""
    base = hostile()
    odd = {
        "expected": {"device": SCRIPT, "emulate": SCRIPT, "emulate_rounded": SCRIPT, SCRIPT: None, "threads": SCRIPT},
        "actual": {
            "providers": [SCRIPT, "[red]x"],
            "switches": {SCRIPT: SCRIPT},
            "unconfirmed": [SCRIPT],
            "nodes": {SCRIPT: SCRIPT},
            "changed": {SCRIPT: SCRIPT},
            "placement": SCRIPT,
        },
    }
    torch = replace(TORCH, device=SCRIPT, dtype=SCRIPT, threads=7, switches={SCRIPT: SCRIPT, "esc\x1b[31m": "[red]"})
    actual = replace(ORT_OFF, optimization=SCRIPT, exporter=SCRIPT, switches={SCRIPT: SCRIPT})
    runs = (
        replace(base.configs[0], effective=odd, expected=torch, actual=actual),
        config_run(SCRIPT, actual, None, expected=torch, status="crashed", effective={}, skipped_reason=SCRIPT),
        config_run("lone\udcff", actual, None, status="skipped", effective={}, skipped_reason="one\nreason\x1b[2J"),
        config_run("层" * 30, actual, None, status="skipped", effective={}, skipped_reason="one\nreason\x1b[2J"),
    )
    diagnosis = Diagnosis("BD301", SCRIPT, (SCRIPT,), f"{SCRIPT}\n[red]x = 'esc\x1b[31m'", True, SCRIPT)
    rows = tuple(
        replace(item, results={name: replace(result, share=0.5) for name, result in item.results.items()})
        for item in base.stages
    )
    tried = hypothesis(SCRIPT, SCRIPT, "esc\x1b[31m", math.nan, math.inf, None, "no answer")
    tried = replace(tried, side=SCRIPT, before="[red]x", failing=SCRIPT, passing="lone\udcff", tried=SCRIPT)
    verdict = replace(base.verdict, diagnoses=(diagnosis,), hypotheses=(tried,))
    return replace(base, verdict=verdict, configs=runs, stages=rows)


SAMPLES = {
    "healthy": healthy,
    "diverging": diverging,
    "matrix": matrix,
    "long": long,
    "empty": empty,
    "bare": bare,
    "hostile": hostile,
}
