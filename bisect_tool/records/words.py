"""Words that a field may hold, where it may hold only some."""

from __future__ import annotations

from typing import Literal

Level = Literal["op", "leaf", "container"]
Role = Literal["judged", "output", "group"]
Judgement = Literal["pass", "fail", "not compared"]
Status = Literal["agrees", "diverges", "inconclusive"]
Side = Literal["expected", "actual"]
Conclusion = Literal["culprit", "contributes", "ruled out", "no answer"]
TrialConclusion = Literal["cause", "contributes", "ruled out", "no answer"]
Severity = Literal["fault", "suspicion", "fact"]
Testimony = Literal["export", "runtime", "neither", "unknown"]
ConfigStatus = Literal["agrees", "diverges", "perturbed", "skipped", "failed", "crashed"]
Reach = Literal["any", "reduced", "rounding", "possible", "none"]
LinkStatus = Literal["same", "differs", "unknown"]
