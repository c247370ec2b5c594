"""Which ONNX value stands for which PyTorch value.

Evidence is gathered in this order, and every pair keeps what it rests on:

1. *graph output*: the outputs of both sides, by name or in order; see :mod:`bisect_tool.outputs`.
2. *value*: signatures of both sides agree. Where several fit, *scope* (the exporter's metadata or TorchScript's node
   names) and then *order* (both runs are topological orders of the same computation) decide. Where order is no more than a
   choice, the pair is *ambiguous*, unless a *second input* tells the look-alikes apart.
3. *scope* alone, or *weights* where a file has lost its names, where no value fits: the stage is broken, or it comes after
   a broken one. Such pairs are *unconfirmed* until a forced run, in which each stage works on PyTorch's own inputs, shows
   the value after all.

A value is followed through nodes that the exporter does not know (a ``Cast`` pair put in later): what leaves a stage is
what the next one reads.

:func:`bisect_tool.align.matching.match_values` pairs, :func:`bisect_tool.align.summary.summarize` tells what came of it.
"""
