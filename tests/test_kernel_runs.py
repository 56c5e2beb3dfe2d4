"""The lazy flow, the kernel and the blocks of parameters of a run."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import xarray as xr

import flowattn as fa
from flowattn.cli.main import main
from flowattn.runs.outputs import HAVE
from flowattn.systems import REGISTRY, load

from .kernel_net import COUNT, OUTER, OUTPUTS, START, Y, loss
from .systems import SMALL, generic, small

ALL = {"lazy": True, "kernel": 6, "attribute": "blocks"}


def problem(**parts):
    return fa.Problem(START, loss, outputs=OUTPUTS, outer=OUTER, **parts)


def of(problem):
    """Its outputs, and the loss of these."""
    assert problem.outputs is not None and problem.outer is not None
    return problem.outputs, problem.outer


@pytest.fixture(scope="module")
def report():
    return fa.run(problem(), optimizer=fa.SGD(0.5), t1=20.0, outputs=10, **ALL)


def test_the_lazy_flow_is_a_reduction_of_the_run(report):
    (one,) = report.summary["reductions"]
    assert one["name"] == "lazy" and one["kind"] == "approximate"
    assert one["defect"] < 1e-14
    lazy = fa.lazy_reduction(problem())
    alone = lazy.solve(START, ts=report.flow.ts)
    ours = report.reductions["lazy"].observed["loss"]
    np.testing.assert_array_equal(ours, alone.observed["loss"])
    # Not the loss of the model at the parameters of the lazy flow.
    assert abs(float(loss(alone.params) - ours[-1])) > 1e-4
    assert "theory   lazy (approximate, defect" in repr(report)


def test_the_kernel_is_that_of_some_outputs(report):
    drawn = jnp.sort(jr.permutation(jr.key(0), COUNT)[:6])

    def some(params):
        return OUTPUTS(params)[drawn]

    flow = fa.GradientFlow(loss)
    known = {
        "kernel_change": fa.kernel_change(some, START),
        "kernel_speed": fa.kernel_speed(some, flow),
        # Of half a mean square, −∇ℓ(0) is y/n.
        "kernel_alignment": fa.alignment(some, Y[drawn]),
    }
    for name, fn in known.items():
        for run in (report.flow, report.descent):
            np.testing.assert_allclose(
                run.observed[name][-1], fn(run.params), rtol=1e-9
            )
        assert name in repr(report) and name in report.summary["gap"]["observables"]
    assert len(report.panels()["kernel"]) == 3
    everything = fa.run(problem(), t1=1.0, descent=False, kernel=COUNT)
    np.testing.assert_allclose(
        everything.flow.observed["kernel_alignment"][0],
        fa.alignment(OUTPUTS, Y)(START),
        rtol=1e-12,
    )


def test_blocks_share_the_change_of_the_output_along_the_target(report, tmp_path):
    one, run = report.summary["attribution"], report.attribution
    along = [float(Y @ OUTPUTS(p)) / COUNT for p in (START, report.flow.params)]
    assert one["result"] == "successful"
    assert one["change"] == pytest.approx(along[1] - along[0], abs=1e-6)
    assert one["apart"] < 1e-6 < abs(one["change"])
    assert list(one["share"]) == ["W", "a"]
    assert sum(one["share"].values()) == pytest.approx(1, abs=1e-9)
    for name, part in one["contribution"].items():
        assert one["share"][name] * one["change"] == pytest.approx(part, rel=1e-5)
        assert one["shares"][name][0] is None and len(one["shares"][name]) == len(
            one["times"]
        )
        assert one["shares"][name][-1] == one["share"][name]
    line = next(x for x in repr(report).splitlines() if x.startswith("blocks"))
    assert f"W {one['share']['W']:.3%}, a {one['share']['a']:.3%} of the chang" in line
    panels = report.panels()["blocks"]
    assert [len(panel.curves) for panel in panels] == [2, 2]
    report.save(tmp_path)
    tree = xr.open_datatree(tmp_path / "trajectory.zarr", engine="zarr")
    assert set(tree.children) == {"flow", "descent", "lazy", "attribution"}
    saved = tree["attribution"]["contribution"]
    assert saved.dims == ("time", "block") and list(saved["block"].values) == ["W", "a"]
    np.testing.assert_array_equal(saved, run.observed["contribution"])
    assert {"blocks.png", "kernel.png"} <= set(
        json.loads((tmp_path / "summary.json").read_text())["files"]
    )


def test_the_target_of_classes_is_the_centred_right_logit():
    system = small()
    run = fa.run(system, t1=30.0, descent=False, attribute="blocks", outputs=4)
    labels, (outputs, _) = run.problem.corpus.train.labels, of(run.problem)

    def centred(params):
        logits = outputs(params)
        right = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return float(jnp.mean(right - jnp.mean(logits, axis=1)))

    change = centred(run.flow.params) - centred(run.problem.params)
    assert run.summary["attribution"]["change"] == pytest.approx(change, rel=1e-4)


SMALL_ONES = {
    "topic-words": [
        small(),
        small(form="keys"),
        small(form="logits"),
        small(classifier="linear"),
        small(classifier="two-layer"),
    ],
    "focus": [
        fa.systems.Focus(classes=3, mosaics=9, segments=4),
        fa.systems.Focus(classes=3, mosaics=9, segments=4, fixed_focus=0.5),
    ],
    "copying": [
        fa.systems.Copying(length=2, vocabulary=3),
        fa.systems.Copying(length=2, vocabulary=3, scores="factorised"),
    ],
    "linear-icl": [fa.systems.LinearICL(heads=2)],
    "token-selection": [fa.systems.TokenSelection().small],
    "positional-semantic": [fa.systems.PositionalSemantic().small],
    "gradient-starvation": [fa.systems.GradientStarvation(decoupled=True)],
}


@pytest.mark.parametrize(
    "system", [x for group in SMALL_ONES.values() for x in group], ids=repr
)
def test_the_loss_is_one_of_outputs(system):
    found = system.problem(jr.key(0))
    for params in (found.params, generic(found)):
        outputs, outer = of(found)
        composed = outer(outputs(params))
        assert float(composed) == pytest.approx(float(found.loss(params)), rel=1e-12)
    assert float(fa.defect(fa.lazy_reduction(found), found.params)) < 1e-12


def test_the_loss_of_real_sentences_is_one_of_outputs(tmp_path):
    lines = [f"{label}\t{text}" for label, text in enumerate(["a b", "b c c", "c"])]
    (tmp_path / "own.tsv").write_text("\n".join(["label\ttext", *lines * 9]))
    for padding in ("mask", "attend"):
        system = fa.systems.TopicWords(
            corpus=str(tmp_path / "own.tsv"), dimension=4, padding=padding
        )
        found = system.problem(jr.key(0))
        params = generic(found)
        outputs, outer = of(found)
        composed = outer(outputs(params))
        assert float(composed) == pytest.approx(float(found.loss(params)), rel=1e-12)


def test_what_has_outputs_is_named():
    for name in REGISTRY:
        system = load(name)()
        if not hasattr(system, "problem"):
            continue
        assert (name in HAVE.replace(",", "").split()) == (name in SMALL_ONES), name
    without = [
        fa.systems.Focus(loss="hard", classes=3, mosaics=9, segments=4),
        fa.systems.Focus(loss="hybrid", classes=3, mosaics=9, segments=4),
        fa.systems.Focus(reduced=True),
        fa.systems.Copying(reduced=True),
        fa.systems.Keyword(),
    ]
    assert all(system.problem(jr.key(0)).outputs is None for system in without)


def test_observables_of_outputs_are_those_of_the_lazy_model():
    found = small(form="keys").problem(jr.key(0))
    lazy, params = fa.lazy_reduction(found), generic(found)
    linear = lazy.flow.loss.predict(params)
    chosen = np.argmax(np.asarray(linear), axis=1)
    right = np.mean(chosen == np.asarray(found.corpus.train.labels))
    assert lazy.observables["accuracy"].label == found.observables["accuracy"].label
    assert float(lazy.observables["accuracy"](params)[0]) == float(right)
    assert float(lazy.observables["loss"](params)) == float(of(found)[1](linear))
    ours, theirs = (
        x["topic_score"](params) for x in (lazy.observables, found.observables)
    )
    np.testing.assert_array_equal(ours, theirs)


class Explicit(fa.AbstractExplicitLoss):
    """The loss of the network, with an explicit gradient."""

    def __call__(self, params):
        return loss(params)

    def gradient(self, params):
        return jax.grad(loss)(params)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lazy": True, "flow": False, "steps": 2}, "lazy is of the flow, which is no"),
        (
            {"attribute": "blocks", "flow": False, "steps": 2},
            "attribute is of the flow, which is not run",
        ),
        (
            {"lazy": True, "flow": "descent", "t1": 1.0},
            "lazy is of the gradient flow, not of flow='descent'",
        ),
        (
            {"kernel": 2, "flow": "central", "t1": 1.0},
            "kernel is of the gradient flow, not of flow='central'",
        ),
        ({"kernel": 13, "t1": 1.0}, "kernel 13 is more than the 12 outputs"),
        ({"kernel": -1, "t1": 1.0}, "kernel must be 0 or more, got -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(fa.InputError, match=message) as refused:
        fa.run(problem(), **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ALL)
def test_problems_that_cannot_be_asked_are_refused(name):
    ask = {name: ALL[name], "t1": 1.0, "descent": False}
    with pytest.raises(fa.InputError, match=f"^{name} needs a problem with outputs="):
        fa.run(fa.Problem(START, loss), **ask)
    explicit = fa.Problem(START, Explicit(), outputs=OUTPUTS, outer=OUTER)
    with pytest.raises(fa.InputError, match="the flow of a Explicit its explicit grad"):
        fa.run(explicit, **ask)
    late = fa.Switch(0.5, lambda p: 2 * loss(p))
    with pytest.raises(fa.InputError, match="of a gradient flow, got a SwitchedFlow"):
        fa.run(problem(switch=late), **ask)


def test_more_is_refused():
    many = fa.Problem(
        jnp.ones(()),
        lambda w: 0.5 * jnp.sum(jnp.zeros(5000) + w) ** 2,
        outputs=lambda w: jnp.zeros(5000) + w,
        outer=lambda f: 0.5 * jnp.sum(f) ** 2,
    )
    with pytest.raises(fa.InputError, match="kernel must be at most 4096, got 4097"):
        fa.run(many, t1=1.0, kernel=4097)
    with pytest.raises(fa.InputError, match="a slope where all outputs are 0"):
        fa.run(many, t1=1.0, attribute="blocks")
    not_square = fa.Problem(
        START,
        lambda p: jnp.sum(jnp.cosh(OUTPUTS(p))),
        outputs=OUTPUTS,
        outer=lambda f: jnp.sum(jnp.cosh(f)),
    )
    with pytest.raises(fa.InputError, match="half a mean square for instance"):
        fa.effective_parameters(not_square)
    with pytest.raises(fa.InputError, match="half a mean square for instance"):
        weighed = lambda f: jnp.arange(1.0 * COUNT) @ f**2  # noqa: E731
        fa.effective_parameters(
            fa.Problem(
                START, lambda p: weighed(OUTPUTS(p)), outputs=OUTPUTS, outer=weighed
            )
        )


FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]


def test_the_command_line_has_the_flags(capsys, tmp_path):
    asked = ["--lazy", "--kernel", "5", "--attribute", "blocks", "--outputs", "5"]
    command = ["run", "topic-words", *FLAGS, "--t1", "20", "--no-descent", *asked]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "theory   lazy (approximate" in printed and "kernel_alignment" in printed
    assert "\nblocks   embeddings " in printed
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["config"]["kernel"] == 5 and summary["config"]["lazy"] is True
    parts = summary["outcomes"]
    for part in ("reduction lazy", "attribution", "attribution, error estimate"):
        assert parts[part] == "successful"
    assert main([*command, "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert "nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["keyword", "--lazy"], f"lazy needs a problem with outputs= and outer=; of "
         f"the systems {HAVE}"),
        (["copying", "--reduced", "--kernel", "3"], "kernel needs a problem"),
        (["focus", "--loss", "hard", "--attribute", "blocks"], "attribute needs a pro"),
        (["topic-words", *FLAGS, "--lazy", "--flow", "descent"],
         "--lazy is of the gradient flow, not of --flow descent"),
        (["topic-words", *FLAGS, "--no-flow", "--attribute", "blocks"],
         "--attribute is of the flow, which is not run"),
        (["topic-words", *FLAGS, "--kernel", "999"], "kernel 999 is more than the"),
        (["ktiw", "--lazy"], "--lazy does nothing here"),
    ],
)  # fmt: skip
def test_the_command_line_refuses_in_one_line(flags, message, capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["run", *flags, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert message in said.err and len(said.err.strip().splitlines()) == 1
    assert not said.out and not out.exists()


def test_lazily_the_lazy_model_is_itself():
    """A model that is linear in its parameters has a lazy flow that is its own."""
    weights = jr.normal(jr.key(3), (4, 3))

    def outputs(w):
        return weights @ w

    def outer(f):
        return jnp.mean((f - 1.0) ** 2)

    linear = fa.Problem(
        jnp.zeros(3), fa.OfOutputs(outer, outputs), outputs=outputs, outer=outer
    )
    run = fa.run(linear, t1=5.0, descent=False, lazy=True)
    assert run.summary["reductions"][0]["max_relative"] < 1e-5
    assert eqx.tree_equal(run.problem.params, linear.params)
