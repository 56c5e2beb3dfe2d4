"""Verdicts: what a run found, in sentences."""

from collections.abc import Iterator
from typing import Any

from ..measures.gap import DEPARTURE, RESOLVED
from ..report import Mark, Verdict, scientific, share
from .outcomes import WELL
from .table import KINDS, ending, measured_in

# A law counts as kept by a flow up to this many times the solver's relative tolerance,
# and as left from this share of its terms on; what lies between is only reported. An
# exact reduction and a closed form count as met likewise.
_KEPT, _LEFT = 1e3, 1e-2


def verdicts(summary: dict[str, Any]) -> list[Verdict]:
    """What a run found, the most important first.

    Args:
        summary: of a run, as in `summary.json`.

    Returns:
        The findings.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> problem = fa.Problem(jnp.array([2.0]), lambda x: 0.5 * jnp.sum(x**2))
    >>> run = fa.run(problem, optimizer=fa.SGD(0.01), t1=2.0)
    >>> verdicts(run.summary)[0].mark
    'good'
    """
    found = [*_endings(summary), *_gap(summary), *_edge(summary), *_cautions(summary)]
    return [*found, *_laws(summary), *_theory(summary), *_events(summary)]


def _endings(summary: dict[str, Any]) -> Iterator[Verdict]:
    """Parts that did not end as they should have, or were not begun."""
    for part, end in summary["outcomes"].items():
        if end in WELL:
            continue
        run = summary.get(part) if part in ("flow", "descent") else None
        how = end.replace("_", " ") if run is None else ending(run).strip("; ")
        yield Verdict("caution", f"{_named(part)}: {how}.")


def _named(part: str) -> str:
    return part if part == "runs" else f"The {part}"


def _gap(summary: dict[str, Any]) -> Iterator[Verdict]:
    gap, flow = summary["gap"], summary["flow"]
    if gap is None:
        return
    most = gap["max_relative"]
    unit = f"{measured_in(gap['scale'])}{_widest(gap)}"
    error, departure = gap["numerical_error"], gap["departure"]
    bar = (
        f"with an unknown numerical error ({gap['numerical_error_missing']})"
        if error is None
        else f"with a numerical error of {share(error)}"
    )
    kind = _flow_named(flow)
    if most is None:
        yield Verdict(
            "note",
            f"The gap between the descent and {kind} has no bound in this unit: an "
            "observable is 0 or changes sign.",
        )
    elif error is not None and most <= RESOLVED * error:
        yield Verdict(
            "note",
            f"The descent cannot be distinguished from {kind} up to "
            f"t = {gap['until']:g}: their gap, at most {share(most)} {unit}, is within "
            f"twice the numerical error of {share(error)}.",
        )
    elif departure["time"] is None:
        # Not good where the error is unknown, or the flow warns of itself.
        yield Verdict(
            "good" if gap["resolved"] else "caution",
            f"The descent follows {kind} up to t = {gap['until']:g}: the gap is "
            f"at most {share(most)} {unit}, {bar}.",
        )
    else:
        yield Verdict(
            "bad",
            f"The descent leaves {kind}: the gap is beyond "
            f"{share(departure['fraction'])} from t = {departure['time']:g} on, and "
            f"at most {share(most)} {unit}, {bar}.",
        )
    if gap["claim"]:
        yield Verdict("note", _sentence(gap["claim"]))


def _widest(gap: dict[str, Any]) -> str:
    """The observable whose gap is the largest, where there are several."""
    known = {
        name: one["relative"]
        for name, one in gap["observables"].items()
        if one["relative"] is not None
    }
    if len(known) < 2:
        return "".join(f" (in the {name.replace('_', ' ')})" for name in known)
    widest = max(known, key=lambda name: known[name])
    return f" (in {widest.replace('_', ' ')}, of {len(known)} observables)"


def _flow_named(flow: dict[str, Any]) -> str:
    of = KINDS.get(flow["kind"], "").format(**flow)
    return f"the flow {of}" if of else "the gradient flow"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _edge(summary: dict[str, Any]) -> Iterator[Verdict]:
    sharp = summary["sharpness"]
    stable = sharp["largest_stable_learning_rate"]
    if stable is not None:
        rate, past = sharp["learning_rate"], sharp["past_edge"]
        mark: Mark = "bad" if past else "good"
        where = "past" if past else "within"
        yield Verdict(
            mark,
            f"The learning rate {rate:g} is {where} the edge of stability at the "
            f"start, {stable:.3g} (sharpness {sharp['start']:.3g}).",
        )
    since = sharp["past_edge_since"]
    if since is not None:
        yield Verdict(
            "bad",
            f"The flow is past the descent's edge of stability from t = {since:g} on.",
        )


def _cautions(summary: dict[str, Any]) -> Iterator[Verdict]:
    flow = summary["flow"] or {}
    for one in flow.get("exceeded", {}).values():
        yield Verdict(
            "caution",
            f"{_sentence(one['long_name'])[:-1]} is above {one['limit']:g} from "
            f"t = {one['since']:g} on: the flow may be far from the descent there, "
            "whatever its numerical error.",
        )


def _laws(summary: dict[str, Any]) -> Iterator[Verdict]:
    kept = _KEPT * summary["config"]["rtol"]
    for law in summary["laws"]:
        drift = law["max_drift"]
        smooth = law.get("smooth_until")
        until = ""
        if smooth is not None:
            drift = law["max_drift_while_smooth"]
            until = f" up to the first kink at t = {smooth:g}"
        parts, mark = [], "note"
        left = law["descent_drift"]
        if drift is not None:
            parts.append(f"{share(drift)} along the flow{until}")
            if drift <= kept:
                mark = "good"
            elif drift > _LEFT and law["kind"] == "exact":
                mark = "bad"
        if left is not None and left <= DEPARTURE:
            parts.append(f"{share(left)} along the descent")
        what = {"good": "holds: it ", "bad": "does not hold: it "}.get(mark, "")
        regime = f" ({law['regime']})" if law["regime"] else ""
        kind = "" if law["kind"] == "exact" else f"{law['kind']} "
        if parts:
            yield Verdict(
                mark,
                f"The {kind}law {law['name']}{regime} {what}drifts by "
                f"{' and '.join(parts)}, relative to its largest term.",
            )
        if left is not None and left > DEPARTURE:
            yield Verdict(
                "bad" if law["kind"] == "exact" else "note",
                f"The descent leaves the law {law['name']}, by {share(left)} of its "
                "largest term.",
            )


def _theory(summary: dict[str, Any]) -> Iterator[Verdict]:
    met = _KEPT * summary["config"]["rtol"]
    for one in summary["reductions"]:
        apart = one["max_relative"]
        defect = one["defect"]
        known = (
            "an undefined defect" if defect is None else f"a defect of {share(defect)}"
        )
        text = f"The {one['kind']} reduction {one['name']} has {known}"
        mark: Mark = "note"
        if apart is not None:
            error = one["numerical_error"]
            known = "" if error is None else f" (numerical error {share(error)})"
            text += ", and its solution differs from the full flow by at most "
            text += f"{share(apart)} of the largest value{known}"
            if one["kind"] == "exact":
                mark = "good" if apart <= max(met, 10 * (error or 0.0)) else "bad"
        yield Verdict(mark, text + ".")
    for one in summary["closed_forms"]:
        parts = [
            f"{share(one[kind])} for the {kind}"
            for kind in ("flow", "descent")
            if one.get(kind) is not None
        ]
        if parts:
            far = one.get("flow")
            mark = "good" if far is not None and far <= met else "note"
            text = f"The distance from the closed form of {one['name']} is "
            yield Verdict(mark, f"{text}{' and '.join(parts)}.")


def _events(summary: dict[str, Any]) -> Iterator[Verdict]:
    flow = summary["flow"] or {}
    for name, time in flow.get("events", {}).items():
        if time is not None:
            error = flow["event_errors"].get(name)
            known = "" if error is None else f", with an error of {scientific(error)}"
            words = name.replace("_", " ")
            yield Verdict("note", f"Event “{words}” at t = {time:.8g}{known}.")
