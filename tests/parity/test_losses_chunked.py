"""The losses without logits against their eager twins: values, every gradient, and what memory they touch."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from deepspec.losses import chunk_sweep, chunked, terms
from deepspec.losses.chunk_sweep import LogitSources
from tests.fixtures.drafts import ALGORITHM, QWEN, batch_of, config_of, draft_of

# fp64: only the order of additions differs.
FP64 = 1e-12
# fp32: sums over a vocabulary in another order.
FP32 = 1e-5
# fp32, gradients over a real vocabulary: BLAS's own sums of 151,936 products with few rows are off by up to 8e-6.
REAL_VOCABULARY = 2e-5
# bf16 inputs: both sides round the same logits and the same gradients by logits to 8 bits; a last bit of either may
# flip, and so may the bits of sums over chunks, which eager rounds once.
BF16 = 1e-2
TOLERANCE = {torch.float64: FP64, torch.float32: FP32, torch.bfloat16: BF16}
RANK = 5


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()


class Case:
    """Inputs, and both ways over them."""

    def __init__(
        self, rows=11, vocab=37, hidden=12, *, dtype=torch.float64, softcap=None, factors=True, scale=1.0, seed=0
    ):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.hidden = (scale * normal(rows, hidden)).to(dtype).requires_grad_()
        self.final = (scale * normal(rows, hidden)).to(dtype)
        self.head = (hidden**-0.5 * normal(vocab, hidden)).to(dtype)
        self.factors = normal(rows, RANK).to(dtype).requires_grad_() if factors else None
        self.factor_head = (RANK**-0.5 * normal(vocab, RANK)).to(dtype).requires_grad_() if factors else None
        self.labels = torch.randint(0, vocab, (rows,), generator=generator)
        self.weights = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
        self.softcap = softcap
        self.dtype = dtype

    def trained(self):
        named = {"hidden": self.hidden, "factors": self.factors, "factor_head": self.factor_head}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def sources(self):
        return LogitSources(self.hidden, self.final, self.head, self.softcap, self.factors, self.factor_head)

    def logits(self):
        draft = terms.soft_cap(terms.wide(F.linear(self.hidden, self.head)), self.softcap)
        if self.factors is not None:
            draft = draft + terms.wide(F.linear(self.factors, self.factor_head))
        return draft, terms.soft_cap(terms.wide(F.linear(self.final, self.head)), self.softcap)

    def scaled(self, factor):
        return None if factor is None else factor * self.weights

    def eager_block(self, ce, tv):
        draft, target = self.logits()
        ce_N, l1_N = terms.cross_entropy(draft, self.labels), terms.l1_distance(draft, target)
        loss = draft.new_zeros(())
        for factor, value in ((ce, ce_N), (tv, l1_N)):
            if factor is not None:
                loss = loss + factor * (self.weights.to(value.dtype) * value).sum()
        return loss, (ce_N, l1_N)

    def chunked_block(self, ce, tv, **options):
        found = chunked.block_terms(
            self.sources(), self.labels, ce_weights_N=self.scaled(ce), l1_weights_N=self.scaled(tv), **options
        )
        return found.loss, (found.ce_N, found.l1_N)

    def eager_soft(self):
        draft, target = self.logits()
        ce_N = terms.soft_cross_entropy(draft, target)
        loss = (self.weights.to(ce_N.dtype) * ce_N).sum()
        return loss, (ce_N, terms.acceptance(terms.l1_distance(draft, target)))

    def chunked_soft(self, **options):
        found = chunked.soft_cross_entropy(self.sources(), self.weights, **options)
        return found.loss, (found.ce_N, found.acceptance_N)

    def gradients(self, loss):
        return dict(zip(self.trained(), torch.autograd.grad(loss, list(self.trained().values())), strict=True))

    def agree(self, found, expected):
        tolerance = TOLERANCE[self.dtype]
        (loss, values), (eager_loss, eager_values) = found, expected
        assert loss.item() == pytest.approx(eager_loss.item(), rel=tolerance, abs=tolerance)
        for value, eager in zip(values, eager_values, strict=True):
            assert not value.requires_grad
            assert torch.isfinite(value).all()
            torch.testing.assert_close(value, eager.detach(), rtol=tolerance, atol=tolerance)
        gradients, eager_gradients = self.gradients(loss), self.gradients(eager_loss)
        for name, gradient in gradients.items():
            assert gradient.dtype == self.dtype
            assert torch.isfinite(gradient).all(), name
            assert relative(gradient, eager_gradients[name]) <= tolerance, name


FACTORS = [(0.1, 0.9), (1.0, None), (None, 0.9)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("factors", [True, False])
class TestTwins:
    @pytest.mark.parametrize(("ce", "tv"), FACTORS)
    @pytest.mark.parametrize("rows_per_chunk", [None, 1, 3, 11, 100])
    def test_block_terms(self, dtype, softcap, factors, ce, tv, rows_per_chunk):
        case = Case(dtype=dtype, softcap=softcap, factors=factors)
        case.agree(case.chunked_block(ce, tv, rows_per_chunk=rows_per_chunk), case.eager_block(ce, tv))

    @pytest.mark.parametrize("rows_per_chunk", [None, 1, 3, 11, 100])
    def test_soft_cross_entropy(self, dtype, softcap, factors, rows_per_chunk):
        case = Case(dtype=dtype, softcap=softcap, factors=factors)
        case.agree(case.chunked_soft(rows_per_chunk=rows_per_chunk), case.eager_soft())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_saturated_rows(dtype):
    """Logits of thousands: one token has all the mass, every other probability is exactly 0."""
    case = Case(dtype=dtype, scale=1000.0)
    with torch.no_grad():
        # A row whose two sides agree, one that has its label right, and one of equal logits.
        case.final[2] = case.hidden[2]
        case.labels[4] = (case.head @ case.hidden[4]).argmax()
        case.hidden[7] = 0
        case.final[8] = 0
    case.agree(case.chunked_block(0.1, 0.9, rows_per_chunk=4), case.eager_block(0.1, 0.9))
    case.agree(case.chunked_soft(rows_per_chunk=4), case.eager_soft())


def test_equal_sides_have_no_variation_and_no_gradient_from_it():
    case = Case(factors=False)
    case.final = case.hidden.detach().clone()
    loss, (_, l1_N) = case.chunked_block(None, 1.0)
    # Two products of one chunk may round differently; a sign of such a difference is worth no more than the rounding.
    assert l1_N.max() <= FP64
    expected = case.gradients(case.eager_block(None, 1.0)[0])["hidden"]
    assert torch.isfinite(case.gradients(loss)["hidden"]).all()
    assert torch.isfinite(expected).all()


@pytest.mark.parametrize("rows", [0, 6])
def test_nothing_supervised(rows):
    """No row at all, and rows whose weights are all 0: loss 0, gradients 0, a backward that works."""
    case = Case(rows=rows)
    case.weights = torch.zeros(rows, dtype=torch.float64)
    for loss, values in (case.chunked_block(0.1, 0.9), case.chunked_soft()):
        assert loss.item() == 0
        assert all(len(value) == rows for value in values)
        for name, gradient in case.gradients(loss).items():
            assert gradient.shape == case.trained()[name].shape
            assert not gradient.any()


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_a_real_vocabulary(softcap, scale):
    """In fp32, against eager fp64: eager fp32 rounds signs of q - p over 151,936 tokens, too, and loses more digits."""
    case = Case(rows=8, vocab=151936, hidden=16, dtype=torch.float32, softcap=softcap, scale=scale)
    exact = Case(rows=8, vocab=151936, hidden=16, softcap=softcap, scale=scale)
    for name in ("hidden", "final", "head", "factors", "factor_head"):
        getattr(exact, name).data = getattr(case, name).detach().double()
    options = {"rows_per_chunk": 4}
    for ours, eager, truth in (
        (case.chunked_block(0.1, 0.9, **options), case.eager_block(0.1, 0.9), exact.eager_block(0.1, 0.9)),
        (case.chunked_soft(**options), case.eager_soft(), exact.eager_soft()),
    ):
        assert ours[0].item() == pytest.approx(truth[0].item(), rel=FP32)
        for value, expected in zip(ours[1], truth[1], strict=True):
            torch.testing.assert_close(value.double(), expected.detach(), rtol=FP32, atol=FP32)
        found, plain, expected = (c.gradients(r[0]) for c, r in ((case, ours), (case, eager), (exact, truth)))
        for name, gradient in expected.items():
            eager_error = relative(plain[name], gradient)
            assert relative(found[name], gradient) <= max(REAL_VOCABULARY, eager_error), name


def test_the_chunk_size_changes_nothing():
    case = Case(rows=13, vocab=3001, softcap=5.0)
    whole_loss, whole_values = case.chunked_block(0.1, 0.9, rows_per_chunk=13)
    whole = case.gradients(whole_loss)
    for rows_per_chunk in range(1, 13):
        loss, values = case.chunked_block(0.1, 0.9, rows_per_chunk=rows_per_chunk)
        assert loss.item() == pytest.approx(whole_loss.item(), rel=FP64)
        for value, expected in zip(values, whole_values, strict=True):
            torch.testing.assert_close(value, expected, rtol=FP64, atol=FP64)
        for name, gradient in case.gradients(loss).items():
            assert relative(gradient, whole[name]) <= FP64, (rows_per_chunk, name)


def test_the_gradient_is_scaled_by_what_comes_from_above():
    case = Case()
    plain = case.gradients(case.chunked_block(0.1, 0.9)[0])
    tripled = case.gradients(3 * case.chunked_block(0.1, 0.9)[0])
    for name, gradient in tripled.items():
        assert relative(gradient, 3 * plain[name]) <= FP64


def test_a_preallocated_gradient_takes_what_is_added():
    case = Case()
    expected = case.gradients(case.eager_block(0.1, 0.9)[0])
    before = torch.randn_like(case.factor_head)
    case.factor_head.grad = before.clone()
    place = chunk_sweep.preallocated_gradient(case.factor_head)
    assert place is case.factor_head.grad
    for _ in range(2):
        case.hidden.grad = case.factors.grad = None
        case.chunked_block(0.1, 0.9, factor_head_gradient_Vr=place, rows_per_chunk=4)[0].backward()
    assert case.factor_head.grad is place
    assert relative(place - before, 2 * expected["factor_head"]) <= FP64
    assert relative(case.hidden.grad, expected["hidden"]) <= FP64
    assert relative(case.factors.grad, expected["factors"]) <= FP64


def test_what_was_added_cannot_be_scaled():
    case = Case()
    case.factor_head.grad = torch.zeros_like(case.factor_head)
    loss, _ = case.chunked_block(0.1, 0.9, factor_head_gradient_Vr=case.factor_head.grad)
    with pytest.raises(RuntimeError, match="scaled"):
        (2 * loss).backward()


def test_gradients_are_given_away_once_and_not_differentiated_again():
    case = Case()
    loss, _ = case.chunked_block(0.1, 0.9)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given away"):
        loss.backward()
    loss, _ = case.chunked_block(0.1, 0.9)
    (gradient,) = torch.autograd.grad(loss, [case.hidden], create_graph=True)
    with pytest.raises(RuntimeError, match="require grad"):
        gradient.sum().backward()


def test_what_is_frozen_is_refused():
    case = Case()
    for name in ("head", "final"):
        getattr(case, name).requires_grad_()
        with pytest.raises(ValueError, match="frozen"):
            case.sources()
        getattr(case, name).requires_grad_(False)
    case.factor_head = None
    with pytest.raises(ValueError, match="together"):
        case.sources()


def test_only_what_is_trained_gets_a_gradient():
    case = Case()
    expected = case.gradients(case.eager_block(0.1, 0.9)[0])
    case.hidden.requires_grad_(False)
    case.factor_head.requires_grad_(False)
    loss, _ = case.chunked_block(0.1, 0.9, rows_per_chunk=4)
    loss.backward()
    assert case.hidden.grad is None
    assert case.factor_head.grad is None
    assert relative(case.factors.grad, expected["factors"]) <= FP64


class Recorder(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned, and the products' sizes."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.multiplications = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = [a for a in args if isinstance(a, torch.Tensor)][-2:]
            self.multiplications += left.shape[0] * left.shape[1] * right.shape[1]
        return result


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_all_logits_is_made(dtype, softcap):
    rows, vocab, chunk = 40, 5000, 4
    case = Case(rows=rows, vocab=vocab, dtype=dtype, softcap=softcap)
    with Recorder() as eager:
        case.eager_block(0.1, 0.9)[0].backward()
    assert eager.largest == rows * vocab, "the recorder does not see full logits"
    for run in (lambda **o: case.chunked_block(0.1, 0.9, **o), case.chunked_soft):
        with Recorder() as seen:
            run(rows_per_chunk=chunk)[0].backward()
        # Both sides' logits of one chunk, or the factors' head.
        assert seen.largest == max(2 * chunk * vocab, RANK * vocab)


def test_chunks_do_not_grow_with_the_rows():
    row_bytes = 151936 * 8
    sizes = {rows: chunk_sweep._chunk_rows(rows, row_bytes, "cpu") for rows in (1, 50, 448, 3584, 100_000)}
    assert sizes[1] == 1
    assert sizes[50] == 50
    assert max(sizes.values()) * row_bytes <= chunk_sweep._MOST_BYTES["cpu"]
    assert chunk_sweep._chunk_rows(1000, 1 << 40, "cpu") == 1
    assert chunk_sweep._chunk_rows(0, row_bytes, "cpu") == 0


def test_without_gradients_nothing_is_multiplied_back():
    case = Case()
    rows, vocab, hidden = 11, 37, 12
    logits = 2 * rows * vocab * hidden + rows * vocab * RANK
    back = rows * vocab * hidden + 2 * rows * vocab * RANK
    with Recorder() as training:
        case.chunked_block(0.1, 0.9)
    assert training.multiplications == logits + back
    for no_gradients in (torch.no_grad(), torch.inference_mode()):
        with no_gradients, Recorder() as validation:
            loss, values = case.chunked_block(0.1, 0.9)
        assert not loss.requires_grad
        assert validation.multiplications == logits
    expected, eager_values = case.eager_block(0.1, 0.9)
    assert loss.item() == pytest.approx(expected.item(), rel=FP64)
    torch.testing.assert_close(values[1], eager_values[1].detach(), rtol=FP64, atol=FP64)


@pytest.mark.parametrize("parts", [(2, 2, 2, 2), (1,) * 8, (3, 5)])
@pytest.mark.parametrize("preallocated", [True, False])
def test_a_step_is_the_same_however_it_was_split(parts, preallocated):
    """Loss and gradient of an optimizer step over 8 documents, in fp64, chunks of 3 rows or one."""
    lengths = (9, 14, 6, 11, 8, 12, 10, 13)
    config = config_of(num_anchors=3)
    whole = batch_of(lengths, dtype=torch.float64)
    starts = [sum(lengths[:d]) for d in range(9)]

    def step(sizes):
        draft = draft_of(config, QWEN, dtype=torch.float64)
        if preallocated:
            for parameter in draft.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        pieces = []
        for part, size in enumerate(sizes):
            first = sum(sizes[:part])
            span = slice(starts[first], starts[first + size])
            pieces.append(
                type(whole)(
                    whole.input_ids_T[span],
                    whole.loss_mask_T[span],
                    lengths[first : first + size],
                    whole.document_ids[first : first + size],
                    whole.states_TLD[span],
                    whole.final_TD[span],
                )
            )
        supervisions = [ALGORITHM.supervise(piece, config, seed=3, step=9) for piece in pieces]
        totals = {term: sum(s.totals[term] for s in supervisions) for term in supervisions[0].totals}
        loss = 0.0
        for piece, supervision in zip(pieces, supervisions, strict=True):
            output = ALGORITHM.loss(draft, piece, supervision, totals)
            output.loss.backward()
            loss += output.loss.item()
        return loss, {n: p.grad for n, p in draft.named_parameters() if p.requires_grad}

    expected_loss, expected = step((8,))
    loss, gradients = step(parts)
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    for name, gradient in gradients.items():
        assert relative(gradient, expected[name]) <= 1e-10, name
