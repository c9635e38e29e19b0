import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddle_td_callback import scores
from paddle_td_callback.detection.scores import NOISE_SCORES

NAN = np.nan


def close(score, wanted, **tolerance):
    assert score.dtype == np.float64
    np.testing.assert_allclose(score, wanted, **(tolerance or {"rtol": 1e-12}))


# Hand-worked numbers. Sample 0 is seen always, 1 misses an epoch, 2 was never seen.

MARGINS = [[-2.0, 1.0, 4.0], [NAN, -3.0, -1.0], [NAN, NAN, NAN]]
GIVEN = [[0.25, 0.5, 0.75], [NAN, 0.5, 0.25], [NAN, NAN, NAN]]
PREDICTIONS = [[1, 0, 1], [-1, 0, 2], [-1, -1, -1]]
LABELS = [1, 0, -1]


def test_aum_is_the_mean_margin():
    close(scores.aum(MARGINS), [1, -2, NAN])


def test_confidence_is_the_mean_probability():
    close(scores.confidence(GIVEN), [0.5, 0.375, NAN])


def test_variability_is_the_population_deviation():
    close(scores.variability(GIVEN), [math.sqrt(0.125 / 3), 0.125, NAN])
    assert scores.variability([[0.3]]).tolist() == [0]


def test_variability_of_a_constant_is_exactly_zero():
    assert scores.variability(np.full((1, 77), 0.1, np.float32)).tolist() == [0]


def test_correctness_is_the_fraction_right():
    close(scores.correctness(PREDICTIONS, LABELS), [2 / 3, 0.5, NAN])


def test_forgetting_counts_right_then_wrong():
    close(scores.forgetting_events(PREDICTIONS, LABELS), [1, 1, NAN])
    #           two events    ends forgotten  learned, kept  never right
    rows = [[5, 0, 5, 0], [0, 5, 5, 0], [0, 0, 5, 5], [0, 1, 2, 3]]
    close(scores.forgetting_events(rows, [5] * 4), [2, 1, 0, 0])


def test_forgetting_looks_past_epochs_in_which_the_sample_was_not_seen():
    #       forgotten over a gap; the gap itself is no forgetting; wrong, gap, wrong
    rows = [[5, -1, -1, 0], [5, -1, 5, -1], [0, -1, 0, -1]]
    close(scores.forgetting_events(rows, [5] * 3), [1, 0, 0])


def test_never_learned_is_seen_and_never_right():
    learned = scores.never_learned([[0, 1], [0, -1], [5, -1], [-1, -1]], [5, 5, 5, 5])
    assert learned.dtype == bool
    assert learned.tolist() == [True, True, False, False]


def test_el2n_is_the_length_of_the_error():
    probabilities = [[[0.5, 0.5], [0.0, 1.0]], [[NAN, NAN], [0.25, 0.75]], [[NAN, NAN]] * 2]
    close(scores.el2n(probabilities, [1, 0, -1]), [math.sqrt(0.5) / 2, 0.75 * math.sqrt(2), NAN])
    close(scores.el2n([[[0.2, 0.3, 0.5]]], [0]), [math.sqrt(0.64 + 0.09 + 0.25)])


def test_el2n_may_stop_early():
    probabilities = [[[0.0, 1.0], [1.0, 0.0]], [[NAN, NAN], [1.0, 0.0]]]
    close(scores.el2n(probabilities, [0, 0], epochs=1), [math.sqrt(2), NAN])
    close(scores.el2n(probabilities, [0, 0], epochs=9), [math.sqrt(2) / 2, 0])


def test_el2n_of_two_classes_follows_from_the_given_label():
    given = np.array([[0.25, 0.5]])
    both = np.stack([given, 1 - given], axis=-1)
    close(scores.el2n(both, [0]), scores.el2n(both[..., ::-1], [1]))
    close(scores.el2n(both, [0]), math.sqrt(2) * (1 - given.mean(axis=1)))


def test_mean_loss_is_the_cross_entropy():
    close(scores.mean_loss(GIVEN), [np.log([4, 2, 4 / 3]).mean(), np.log([2, 4]).mean(), NAN])


def test_mean_loss_takes_from_the_margin_what_the_probability_cannot_hold():
    logits = np.array([[0.0, 200.0], [0.0, 300.0], [20.0, 0.0]])
    margins = (logits[:, 0] - logits[:, 1])[:, None]
    given = (1 / (1 + np.exp(-margins))).astype(np.float32)
    assert given.ravel().tolist() == [0, 0, 1]
    close(scores.mean_loss(given), [126 * math.log(2), 126 * math.log(2), 0])  # clipped at 2**-126
    close(scores.mean_loss(given, margins), [200, 300, math.log1p(math.exp(-20))])


def test_mean_loss_with_margins_of_several_classes_is_at_most_log_of_the_others_too_small():
    logits = np.array([-200.0, 1.0, 1.0, 0.5])
    exact = np.logaddexp.reduce(logits) - logits[0]
    loss = scores.mean_loss(np.zeros((1, 1), np.float32), [[logits[0] - logits[1:].max()]])[0]
    assert exact - math.log(3) <= loss <= exact


def test_mean_loss_is_seen_where_the_probability_is():
    close(scores.mean_loss([[0.5, NAN, 0.5]], [[NAN, -9.0, 0.0]]), [math.log(2)])


def test_margin_is_the_mean_difference_of_probabilities():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [1 / 3, 1 / 3, 1 / 3]])
    logits = np.log(probabilities)
    margins = logits[:, 0] - logits[:, 1:].max(axis=1)
    close(scores.margin(probabilities[:, :1], margins[:, None]), [0.5, -0.5, 0], atol=1e-7)
    close(scores.margin([[0.7, NAN, 0.1]], [[margins[0], NAN, margins[1]]]), [0], atol=1e-7)
    assert np.isnan(scores.margin([[NAN]], [[NAN]])).all()


def test_margin_of_a_probability_that_underflowed_is_that_of_the_other_class():
    logits = np.array([-200.0, np.log(0.25), np.log(0.75)])
    close(scores.margin(np.zeros((1, 1), np.float32), [[logits[0] - logits[2]]]), [-1], atol=1e-7)
    close(scores.margin([[1.0]], [[300.0]]), [1])


@pytest.mark.parametrize(("dtype", "loss"), [("f2", 24), ("f4", 126), ("f8", 1022)])
def test_a_probability_of_zero_costs_what_its_precision_can_tell(dtype, loss):
    close(scores.mean_loss(np.zeros((1, 2), dtype)), [loss * math.log(2)])


# Against naive loops, written from the papers' definitions


def rows_seen(values):
    for row in values:
        yield [float(value) for value in row if not np.isnan(value)]


def naive_mean(values, function=lambda value: value):
    return [sum(map(function, row)) / len(row) if row else NAN for row in rows_seen(values)]


def naive_variability(given):
    return [math.sqrt(sum((p - sum(row) / len(row)) ** 2 for p in row) / len(row)) if row else NAN
            for row in rows_seen(given)]  # fmt: skip


def naive_right(predictions, labels):
    for row, label in zip(predictions, labels, strict=True):
        yield [int(predicted == label) for predicted in row if predicted != -1]


def naive_forgetting(predictions, labels):
    for right in naive_right(predictions, labels):
        yield sum(before > after for before, after in itertools.pairwise(right)) if right else NAN


def naive_el2n(probabilities, labels, epochs=None):
    for trajectory, label in zip(probabilities, labels, strict=True):
        norms = []
        for row in list(trajectory)[:epochs]:
            if not np.isnan(row).any():
                one_hot = [float(c == label) for c in range(len(row))]
                norms.append(math.sqrt(sum((float(p) - t) ** 2 for p, t in zip(row, one_hot, strict=True))))
        yield sum(norms) / len(norms) if norms else NAN


@st.composite
def recordings(draw):
    """All arrays of one recording, from logits with ties and huge values, some entries unseen."""
    n_samples, n_epochs, n_classes = draw(st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(2, 5)))
    # A generator of numpy's makes more varied arrays than hypothesis would in the same time.
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.5, 3.0, 200.0]))
    shape = (n_samples, n_epochs, n_classes)
    logits = random.normal(scale=scale, size=shape)
    if draw(st.booleans()):
        logits = np.round(logits)  # ties
    seen = random.random(shape[:2]) >= draw(st.sampled_from([0.0, 0.3, 1.0]))
    labels = random.integers(n_classes, size=n_samples)
    rows = np.arange(n_samples)
    predictions = np.where(seen, logits.argmax(axis=-1), -1).astype(np.int32)
    exact = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    logits[~seen] = exact[~seen] = NAN
    others = logits.copy()
    others[rows, :, labels] = -np.inf
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    probabilities = np.exp(exact).astype(dtype)
    return {
        "probabilities": probabilities,
        "given_probabilities": probabilities[rows, :, labels],
        "margins": (logits[rows, :, labels] - others.max(axis=-1)).astype(dtype),
        "predictions": predictions,
        "labels": np.where(seen.any(axis=1), labels, -1).astype(np.int32),
        "losses": -exact[rows, :, labels],
        "n_classes": n_classes,
    }


@settings(
    suppress_health_check=[HealthCheck.too_slow]
)  # Hypothesis itself, the first time, on a busy machine
@given(recordings())
def test_scores_agree_with_naive_loops(recording):
    given, margins = recording["given_probabilities"], recording["margins"]
    predictions, labels = recording["predictions"], recording["labels"]
    close(scores.aum(margins), naive_mean(margins), rtol=1e-9, atol=1e-9)
    close(scores.confidence(given), naive_mean(given))
    close(scores.variability(given), naive_variability(given), atol=1e-9)
    right = list(naive_right(predictions, labels))
    close(scores.correctness(predictions, labels), [sum(r) / len(r) if r else NAN for r in right])
    close(scores.forgetting_events(predictions, labels), list(naive_forgetting(predictions, labels)))
    assert scores.never_learned(predictions, labels).tolist() == [bool(r) and not any(r) for r in right]
    probabilities = recording["probabilities"]
    close(scores.el2n(probabilities, labels), list(naive_el2n(probabilities, labels)))
    close(scores.el2n(probabilities, labels, epochs=2), list(naive_el2n(probabilities, labels, 2)))
    floor = np.finfo(given.dtype).tiny
    close(scores.mean_loss(given), naive_mean(given, lambda p: -math.log(max(p, floor))), atol=1e-12)


@given(recordings())
def test_mean_loss_with_margins_is_exact_but_for_the_documented_bound(recording):
    loss = scores.mean_loss(recording["given_probabilities"], recording["margins"])
    exact = np.array(naive_mean(recording["losses"]))
    seen = ~np.isnan(exact)
    assert (np.isnan(loss) == ~seen).all()
    assert (loss[seen] >= 0).all()
    assert (loss[seen] <= exact[seen] * (1 + 1e-6) + 1e-6).all()
    # The shortfall is there only where the probability underflowed.
    slack = np.log(recording["n_classes"] - 1) if (exact[seen] > 10).any() else 0
    assert (loss[seen] >= exact[seen] * (1 - 1e-6) - slack - 1e-6).all()


def compute(name, recording, rows=slice(None)):
    score = NOISE_SCORES[name]
    return score.compute(**{need: recording[need][rows] for need in score.needs})


@pytest.mark.parametrize("name", NOISE_SCORES)
@given(recordings())
def test_noise_scores_are_in_0_1_or_nan_where_never_seen(name, recording):
    noise = compute(name, recording)
    assert noise.dtype == np.float64
    assert (np.isnan(noise) == (recording["labels"] == -1)).all()
    assert ((noise >= 0) & (noise <= 1) | np.isnan(noise)).all()


@pytest.mark.parametrize("name", NOISE_SCORES)
@given(recordings(), st.integers(1, 4))
def test_noise_scores_do_not_depend_on_tiles_or_layout(name, recording, tile):
    whole = compute(name, recording)
    n_samples = len(recording["labels"])
    tiles = [compute(name, recording, slice(i, i + tile)) for i in range(0, n_samples, tile)]
    np.testing.assert_array_equal(np.concatenate(tiles), whole)
    turned = {key: np.asfortranarray(value) for key, value in recording.items()}
    np.testing.assert_array_equal(compute(name, turned), whole)


# What the noise scores mean


def test_noise_of_aum_is_a_half_at_margin_zero_and_never_saturates():
    margins = [[0.0], [-1.0], [1.0], [-50.0], [-51.0], [-1e6], [NAN]]
    noise = NOISE_SCORES["aum"].compute(margins=margins)
    close(noise[:3], [0.5, 0.75, 0.25])
    assert (np.diff(noise[3:6].astype(np.float32)) > 0).all()
    assert noise[5] < 1


def test_noise_of_mean_loss_is_a_half_at_probability_a_half_and_never_saturates():
    given = np.array([[0.5], [1.0], [0.0], [0.0]], np.float32)
    noise = NOISE_SCORES["mean_loss"].compute(
        given_probabilities=given, margins=[[0.0], [99.0], [-150.0], [-151.0]]
    )
    close(noise[:2], [0.5, 0], atol=1e-12)
    assert noise[2] < noise[3] < 1


def test_noise_of_confidence_correctness_and_el2n_are_the_scores_on_their_own_range():
    close(NOISE_SCORES["confidence"].compute(given_probabilities=GIVEN), [0.5, 0.625, NAN])
    close(NOISE_SCORES["correctness"].compute(predictions=PREDICTIONS, labels=LABELS), [1 / 3, 0.5, NAN])
    worst_and_best = [[[0.0, 1.0]], [[1.0, 0.0]]]
    close(NOISE_SCORES["el2n"].compute(probabilities=worst_and_best, labels=[0, 0]), [1, 0])


def test_noise_of_el2n_looks_at_early_epochs_only():
    late = np.zeros((1, scores.EL2N_EPOCHS + 5, 2))
    late[..., 0] = 1
    late[:, scores.EL2N_EPOCHS :] = [0, 1]
    assert NOISE_SCORES["el2n"].compute(probabilities=late, labels=[0]).tolist() == [0]


def test_noise_of_variability_goes_from_easy_over_ambiguous_to_hard():
    easy, late, ambiguous, unstable, hard = [1, 1], [0.5, 1], [0, 1], [0.0, 0.6], [0, 0]
    noise = NOISE_SCORES["variability"].compute(
        given_probabilities=np.array([easy, late, ambiguous, unstable, hard, [NAN, NAN]], float)
    )
    close(noise, [0, 0.25, 0.5, 0.7, 1, NAN])


def test_noise_of_forgetting_ranks_never_learned_first_then_events_then_doubt():
    rows = [
        ([0, 0, 0, 0], 0.10),  # never learned, least confident
        ([0, 1, 2, 0], 0.30),  # never learned
        ([5, 0, 5, 0], 0.90),  # two events, however confident
        ([0, 5, 0, 5], 0.20),  # one event, less confident
        ([0, 5, 0, 5], 0.60),  # one event
        ([0, 0, 0, 5], 0.05),  # no event
        ([5, 5, 5, 5], 0.99),  # always right
    ]
    noise = NOISE_SCORES["forgetting_events"].compute(
        predictions=[predictions for predictions, _ in rows],
        labels=[5] * len(rows),
        given_probabilities=[[p] * 4 for _, p in rows],
    )
    assert (np.diff(noise) < 0).all()
    assert (noise[:2] >= 0.5).all()
    assert (noise[2:] < 0.5).all()


def test_every_public_score_ranks_and_says_why():
    names = [
        "aum",
        "confidence",
        "variability",
        "correctness",
        "forgetting_events",
        "el2n",
        "mean_loss",
        "margin",
    ]
    assert list(NOISE_SCORES) == names
    assert all(callable(getattr(scores, name)) for name in names)


# Empty and errors


def test_no_epochs_is_never_seen_and_no_samples_is_empty():
    nothing = np.zeros((2, 0))
    integers = nothing.astype(int)
    close(scores.aum(nothing), [NAN, NAN])
    close(scores.variability(nothing), [NAN, NAN])
    close(scores.mean_loss(nothing, nothing), [NAN, NAN])
    close(scores.forgetting_events(integers, [1, 1]), [NAN, NAN])
    assert not scores.never_learned(integers, [1, 1]).any()
    close(scores.el2n(np.zeros((2, 0, 3)), [1, 1]), [NAN, NAN])
    assert scores.correctness(np.zeros((0, 4), int), np.zeros(0, int)).shape == (0,)
    assert scores.el2n(np.zeros((0, 4, 3)), np.zeros(0, int)).shape == (0,)


@pytest.mark.parametrize("function", [scores.aum, scores.confidence, scores.variability, scores.mean_loss])
def test_wrong_rank_and_type_of_floats(function):
    with pytest.raises(ValueError, match=r"must be \[sample, epoch\], got shape \(3,\)"):
        function(np.zeros(3))
    with pytest.raises(TypeError, match="must be floating-point numbers, got int64"):
        function(np.zeros((3, 2), np.int64))


def test_infinite_margins():
    with pytest.raises(ValueError, match=r"margins must be finite.*got -inf for sample 1, epoch 0"):
        scores.aum([[0.0], [-np.inf]])


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.inf])
def test_probabilities_outside_0_1(bad):
    with pytest.raises(ValueError, match=r"given_probabilities must be.*for sample 0, epoch 1"):
        scores.confidence([[0.5, bad]])
    with pytest.raises(ValueError, match=r"probabilities must be in.*for sample 0, epoch 0, class 1"):
        scores.el2n([[[0.5, bad]]], [0])


@pytest.mark.parametrize("function", [scores.correctness, scores.forgetting_events, scores.never_learned])
class TestPredictionsRefused:
    def test_floats(self, function):
        with pytest.raises(TypeError, match="predictions must be integers, -1 for unseen, got float64"):
            function([[1.0]], [1])

    def test_rank(self, function):
        with pytest.raises(ValueError, match=r"predictions must be \[sample, epoch\], got shape \(1,\)"):
            function([1], [1])

    def test_below_unseen(self, function):
        with pytest.raises(ValueError, match="classes, or -1 for unseen, got -2 for sample 0, epoch 1"):
            function([[1, -2]], [1])

    def test_float_labels(self, function):
        with pytest.raises(TypeError, match="labels must be integers, got float64"):
            function([[1]], [1.0])

    def test_number_of_labels(self, function):
        with pytest.raises(ValueError, match=r"one for each of 1, got shape \(2,\)"):
            function([[1]], [1, 2])

    def test_labels_below_never_seen(self, function):
        with pytest.raises(ValueError, match="got -2 for sample 1"):
            function([[1], [1]], [1, -2])

    def test_seen_without_a_label(self, function):
        with pytest.raises(ValueError, match="got -1 for sample 1, seen in epoch 1"):
            function([[1, 1], [-1, 1]], [1, -1])


def test_el2n_refuses():
    uniform = np.full((2, 3, 4), 0.25)
    with pytest.raises(ValueError, match=r"must be \[sample, epoch, class\], got shape \(2, 3\)"):
        scores.el2n(uniform[..., 0], [0, 0])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\), got 4 for sample 1"):
        scores.el2n(uniform, [0, 4])
    with pytest.raises(ValueError, match="got -1 for sample 1, seen in epoch 0"):
        scores.el2n(uniform, [0, -1])
    with pytest.raises(ValueError, match="epochs must be at least 1, or None for all, got 0"):
        scores.el2n(uniform, [0, 0], epochs=0)
    with pytest.raises(TypeError, match=r"epochs must be a whole number or None, got 1\.5"):
        scores.el2n(uniform, [0, 0], epochs=1.5)


def test_margins_of_another_shape():
    with pytest.raises(ValueError, match=r"shape of given_probabilities \(1, 2\), got \(2, 1\)"):
        scores.mean_loss([[0.5, 0.5]], [[0.0], [0.0]])


@pytest.mark.parametrize("name", NOISE_SCORES)
def test_the_rule_of_a_score_is_that_of_its_noise(name):
    score = NOISE_SCORES[name]
    assert scores.rule_of(name) == score.rule
    published = {
        "aum": lambda a: scores.aum(a["margins"]),
        "confidence": lambda a: scores.confidence(a["given_probabilities"]),
        "correctness": lambda a: scores.correctness(a["predictions"], a["labels"]),
        "el2n": lambda a: scores.el2n(a["probabilities"], a["labels"], epochs=20),
        "mean_loss": lambda a: scores.mean_loss(a["given_probabilities"], a["margins"]),
        "forgetting_events": lambda a: scores.never_learned(a["predictions"], a["labels"]).astype(float),
        "margin": lambda a: scores.margin(a["given_probabilities"], a["margins"]),
    }
    thresholds = {
        "aum": 0,
        "margin": 0,
        "confidence": 0.5,
        "correctness": 0.5,
        "el2n": 2**0.5 / 2,
        "mean_loss": np.log(2),
    }
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (300, 6, 3))
    labels = rng.integers(0, 3, 300)
    logits[np.arange(300), :, labels] += rng.normal(1, 2, (300, 1))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    given = probabilities[np.arange(300), :, labels]
    others = logits.copy()
    others[np.arange(300), :, labels] = -np.inf
    arrays = {
        "probabilities": probabilities,
        "given_probabilities": given,
        "margins": logits[np.arange(300), :, labels] - others.max(axis=2),
        "predictions": logits.argmax(axis=2),
        "labels": labels,
    }
    noise = score.compute(**{need: arrays[need] for need in score.needs})
    if name == "variability":
        np.testing.assert_array_equal(noise > 0.5, scores.confidence(given) < 0.5)
        return
    value = published[name](arrays)
    sign = 1 if name in ("el2n", "mean_loss", "forgetting_events") else -1
    np.testing.assert_array_equal(noise > 0.5, sign * value > sign * thresholds.get(name, 0.5))
