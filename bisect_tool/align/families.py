"""One name for an operation that PyTorch and ONNX call differently."""

from __future__ import annotations

SHAPING = frozenset(["Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast"])
"""Operators that hand their input on in another shape or type."""

_FAMILIES = {
    "matmul": "bmm mm addmm linear matmul baddbmm gemm mv addmv dot einsum",
    "softmax": "_softmax softmax _safe_softmax special_softmax",
    "logsoftmax": "_log_softmax log_softmax logsoftmax",
    "concat": "cat concat concatenate stack",
    "layernorm": "native_layer_norm layer_norm layernormalization",
    "groupnorm": "native_group_norm group_norm groupnormalization",
    "batchnorm": "native_batch_norm batch_norm batchnormalization _native_batch_norm_legit_no_training cudnn_batch_norm",
    "mean": "mean reducemean",
    "sum": "sum reducesum",
    "max": "amax max any reducemax",
    "min": "amin min all reducemin",
    "product": "prod reduceprod",
    "logsumexp": "logsumexp reducelogsumexp",
    "norm": "linalg_vector_norm norm reducel1 reducel2",
    "conv": "convolution conv2d conv1d conv3d conv convtranspose conv_transpose2d _convolution",
    "attention": "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu attention "
    "_scaled_dot_product_attention_math _native_multi_head_attention",
    "cast": "_to_copy to cast type_as",
    "maxpool": "max_pool2d_with_indices max_pool2d maxpool max_pool1d max_pool3d_with_indices",
    "avgpool": "avg_pool2d avg_pool1d averagepool",
    "resize": "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_nearest1d resize "
    "_upsample_bilinear2d_aa interpolate upsample_nearest3d upsample_trilinear3d",
    "clip": "hardtanh clip clamp relu6 clamp_min clamp_max",
    "power": "pow square",
    "where": "where masked_fill",
    "pad": "constant_pad_nd reflection_pad2d replication_pad2d pad",
    "embedding": "embedding gather index_select index gathernd",
    "scatter": "scatter scatter_add index_put scatternd scatterelements index_add scatter_reduce index_copy select_scatter "
    "slice_scatter",
    "not": "logical_not bitwise_not not",
    "and": "logical_and bitwise_and and",
    "or": "logical_or bitwise_or or",
    "less": "lt less",
    "greater": "gt greater",
    "equal": "eq equal",
    "subtract": "sub rsub",
}

_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names.split()}


def family(name: str) -> str:
    """One name for an operation under its aten and its ONNX names: ``addmm`` and ``MatMul`` are both ``matmul``."""
    return _FAMILY.get(name.lower(), name.lower())
