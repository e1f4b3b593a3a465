"""The scheduler stand-in, stepped by hand."""

import copy
import inspect

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from samplers import Act, Conductor, Look, LoopLayout, Native, ReplayMismatch, Skip, Solve, Visit, stand_in_for
from samplers.dynamics.coefficient_preserving import CoefficientPreserving
from samplers.multistep import SecondOrder

SCHEDULERS = [FlowMatchEulerDiscreteScheduler, DDIMScheduler]


@pytest.fixture(params=SCHEDULERS)
def base(request):
    return DDIMScheduler(clip_sample=False) if request.param is DDIMScheduler else request.param()


def run(scheduler, x, steps=4):
    """Step as a pipeline does, with an answer that depends on state and time; return the states."""
    scheduler.set_timesteps(steps)
    states = [x]
    for t in scheduler.timesteps:
        states.append(scheduler.step(0.1 * states[-1] + t / 1000, t, states[-1], return_dict=False)[0])
    return states


def conducted(base, conductor, x, steps=4):
    made = stand_in_for(base)
    made.conduct(conductor)
    return run(made, x, steps)


def noise(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(3))


def test_it_is_the_scheduler_in_all_but_its_conductor(base):
    made = stand_in_for(base)
    assert isinstance(made, type(base))
    assert made.config == base.config
    for name in ("step", "set_timesteps"):
        assert inspect.signature(getattr(type(made), name)) == inspect.signature(getattr(type(base), name))
    x = torch.randn(2, 4)
    for one, other in zip(run(made, x), run(base, x), strict=True):
        assert torch.equal(one, other)


def test_the_original_does_not_change(base):
    base.set_timesteps(3)
    before = base.timesteps.clone()
    conducted(base, Conductor(), torch.randn(2, 4), steps=5)
    assert torch.equal(base.timesteps, before)
    assert type(base) in SCHEDULERS


def test_native_rounds_are_bit_identical(base):
    x = torch.randn(2, 4)
    states = conducted(base, Conductor([Native()] * 2), x)
    assert all(torch.equal(one, other) for one, other in zip(states, run(base, x), strict=True))


def test_both_forms_of_an_answer_carry_the_state(base):
    made, state = stand_in_for(base), torch.full((2, 4), 7.0)
    made.conduct(Conductor([Skip(state)] * 2))
    made.set_timesteps(4)
    first, second = made.timesteps[:2]
    x = torch.randn(2, 4)
    out = made.step(x, first, x)
    assert torch.equal(out.prev_sample, state)
    assert torch.equal(made.step(model_output=x, timestep=second, sample=x, return_dict=False)[0], state)


def test_other_outputs_of_a_step_are_kept():
    base = DDIMScheduler()
    made, x = stand_in_for(base), torch.randn(2, 4)
    made.conduct(Conductor([Skip()]))
    for scheduler in (base, made):
        scheduler.set_timesteps(4)
    expected = base.step(0.1 * x, base.timesteps[0], x)
    found = made.step(0.1 * x, made.timesteps[0], x)
    assert torch.equal(found.pred_original_sample, expected.pred_original_sample)
    assert torch.equal(found.prev_sample, x)


def test_an_act_is_recorded_as_it_was_stored(base):
    conductor = Conductor([Native(), Act(CoefficientPreserving(0.5), noise)])
    states = conducted(base, conductor, torch.randn(2, 4).bfloat16())
    record = conductor.records[1]
    assert record.x.dtype == record.model_output.dtype == record.x_next.dtype == torch.float32
    assert torch.equal(record.x, states[1].float())
    assert torch.equal(record.x_next, states[2].float())
    again = record.step.sample(record.x, record.model_output, noise(record.x)).to(states[2].dtype)
    assert torch.equal(again, states[2])
    assert list(conductor.records) == [1]


def test_a_look_changes_nothing(base):
    seen = []
    x = torch.randn(2, 4)
    states = conducted(base, Conductor([Native(), Look(lambda *what: seen.append(what))]), x)
    ((state, _, grid),) = seen
    assert torch.equal(state, states[1])
    assert len(grid) == 4
    assert all(torch.equal(one, other) for one, other in zip(states, run(base, x), strict=True))


def test_a_solver_may_jump(base):
    conductor = Conductor([Solve(SecondOrder(), to=2), Skip(), Solve(SecondOrder(), to=4), Skip()])
    states = conducted(base, conductor, torch.randn(2, 4))
    assert torch.equal(states[1], states[2])
    assert torch.equal(states[3], states[4])
    assert not torch.equal(states[2], states[3])
    assert torch.equal(conductor.final, states[-1])


def test_a_visit_hands_over_the_graph_and_the_next_state(base):
    x, following = torch.randn(2, 2, 4)
    seen = []
    made = stand_in_for(base)
    made.conduct(Conductor([Visit(x, seen.append, following)]))
    made.set_timesteps(4)
    v = torch.randn(2, 4, requires_grad=True)
    out = made.step(2 * v, made.timesteps[0], x, return_dict=False)[0]
    assert torch.equal(out, following)
    seen[0].sum().backward()
    assert torch.equal(v.grad, torch.full_like(v, 2.0))


def test_a_visit_of_another_state_is_refused(base):
    made, x = stand_in_for(base), torch.randn(2, 4)
    made.conduct(Conductor([Visit(x + 1, lambda v: None)]))
    made.set_timesteps(4)
    says = r"round 0 met another state .* in stream 0, 2 of 2 rows differ by up to 1, .* float32 \[2, 4\]"
    with pytest.raises(ReplayMismatch, match=says):
        made.step(x, made.timesteps[0], x)


def test_a_visit_of_a_state_of_another_shape_is_refused(base):
    made, x = stand_in_for(base), torch.randn(2, 4)
    made.conduct(Conductor([Visit(x[:, :3], lambda v: None)]))
    made.set_timesteps(4)
    with pytest.raises(ReplayMismatch, match=r"in stream 0, it is float32 \[2, 4\], where \[2, 3\] was recorded"):
        made.step(x, made.timesteps[0], x)


def test_times_of_our_own_are_offered_and_the_native_step_stays_out(base):
    times = torch.tensor([[900.0, 100.0], [30.0, 40.0]])
    seen = []
    x = torch.randn(2, 4)
    conductor = Conductor([Skip(x + 1), Visit(x + 1, seen.append)], times=times)
    made = stand_in_for(base)
    made.conduct(conductor)
    made.set_timesteps(4)
    assert torch.equal(made.timesteps, times)
    first = made.step(x, made.timesteps[0], x, return_dict=False)[0]
    assert torch.equal(first, x + 1)
    assert torch.equal(made.step(x, made.timesteps[1], first).prev_sample, first)
    assert torch.equal(seen[0], x)
    made.conduct(None)
    assert len(made.timesteps) == 4
    assert made.timesteps.ndim == 1


@pytest.mark.parametrize("own", [False, True])
def test_what_a_step_hands_back_is_read_in_three_ways(base, own):
    made, x = stand_in_for(base), torch.randn(2, 4)
    made.conduct(Conductor([Skip(x + 1)], times=torch.tensor([900, 100]) if own else None))
    made.set_timesteps(2)
    out = made.step(x, made.timesteps[0], x)
    assert torch.equal(out.prev_sample, x + 1)
    assert out[0] is out["prev_sample"] is out.prev_sample is out.to_tuple()[0]
    with pytest.raises(AttributeError):
        _ = out.nothing


@pytest.mark.parametrize("form", ["number", "tensor", "one", "rows"])
def test_a_time_is_a_number_or_one_a_row(base, form):
    made, x, seen = stand_in_for(base), torch.randn(2, 4), []
    made.conduct(Conductor([Skip(x), Visit(x, seen.append)], times=torch.tensor([900, 100])))
    made.set_timesteps(2)
    for t in made.timesteps:
        told = {"number": t.item(), "tensor": t, "one": t[None], "rows": t.expand(2)}[form]
        made.step(made.scale_model_input(x, told), told, x)
    assert torch.equal(seen[0], x)


def test_no_step_at_a_time_of_our_own_goes_nowhere():
    made = stand_in_for(FlowMatchEulerDiscreteScheduler())
    made.conduct(Conductor([], times=torch.tensor([900.0, 100.0])))
    made.set_timesteps(4)
    assert len(made.sigmas) == 3
    torch.testing.assert_close(made.sigmas[:2], torch.tensor([0.9, 0.1]))
    assert 0 < made.sigmas[2] < made.sigmas[1]


def pair(scheduler, states, steps=4):
    """Denoise two streams with a copy of the scheduler, as pipelines of video with sound do; return the states."""
    other = copy.deepcopy(scheduler)
    for one in (scheduler, other):
        one.set_timesteps(steps)
    for t in scheduler.timesteps:
        answers = [0.1 * x + t / 1000 for x in states]
        states = [
            s.step(v, t, x, return_dict=False)[0] for s, v, x in zip((scheduler, other), answers, states, strict=True)
        ]
    return states


def test_a_copy_is_a_stream_of_the_same_conductor(base):
    first, second = torch.randn(2, 3, 4), torch.randn(2, 5)
    observed = Conductor()
    made = stand_in_for(base)
    made.conduct(observed)
    own = pair(made, [first, second])
    for one, other in zip(own, pair(copy.deepcopy(base), [first, second]), strict=True):
        assert torch.equal(one, other)
    layout = observed.observed_layout()
    assert layout.calls == ((0, 1),) * 4
    assert layout.shapes == {0: (3, 4), 1: (5,)}
    joint = torch.cat([own[0].flatten(1), own[1]], 1)
    assert torch.equal(observed.final, joint)
    assert torch.equal(layout.piece(joint, 1), own[1])


def test_the_action_is_all_streams_jointly(base):
    states = [torch.randn(2, 3, 4), torch.randn(2, 5)]
    observed = Conductor()
    made = stand_in_for(base)
    made.conduct(observed)
    pair(made, states)
    conductor = Conductor([Native(), Act(CoefficientPreserving(0.5), noise)], layout=observed.observed_layout())
    made.conduct(conductor)
    own = pair(made, states)
    record = conductor.records[1]
    assert record.x.shape == (2, 17)
    assert record.step.std.ndim == 0
    assert torch.equal(record.step.sample(record.x, record.model_output, noise(record.x)), record.x_next)
    seen = []
    script = [Skip(record.x), Visit(record.x, seen.append, record.x_next)]
    made.conduct(Conductor(script, layout=observed.observed_layout()))
    again = pair(made, states)
    assert torch.equal(seen[0], record.model_output)
    assert all(torch.equal(one, other) for one, other in zip(own, again, strict=True))


def test_a_loop_that_changes_is_refused(base):
    made = stand_in_for(base)
    made.conduct(Conductor(layout=LoopLayout(((1, 0),), {0: torch.Size([4]), 1: torch.Size([4])})))
    with pytest.raises(ReplayMismatch, match="round 0 stepped the streams"):
        run(made, torch.randn(2, 4))


def test_a_stream_that_waits_is_where_it_was_left(base):
    """Some pipelines denoise the frames of a clip one after the other."""
    layout = LoopLayout(((1,), (1, 2), (2,)), {1: torch.Size([4]), 2: torch.Size([4])})
    conductor = Conductor([Native(), Native(), Act(CoefficientPreserving(0.5), noise)], layout=layout)
    made, states = stand_in_for(base), dict(zip((1, 2), torch.randn(2, 3, 4), strict=True))
    made.conduct(conductor)
    frames = {1: copy.deepcopy(made), 2: copy.deepcopy(made)}
    for frame in frames.values():
        frame.set_timesteps(2)
    for k, moving in enumerate(layout.calls):
        conductor.open()
        for stream in moving:
            t = frames[stream].timesteps[k + 1 - stream]
            states[stream] = frames[stream].step(0.1 * states[stream], t, states[stream], return_dict=False)[0]
    record = conductor.records[2]
    assert torch.equal(record.x[:, :4], states[1])
    assert torch.equal(record.x_next, torch.cat([states[1], states[2]], dim=1))
    assert (record.model_output[:, :4] == 0).all()
    assert not layout.in_step


def test_frames_that_are_stepped_as_rows_are_one_sample(base):
    x, shapes = torch.randn(6, 4), []
    act = Act(CoefficientPreserving(0.5), lambda z: noise(z) if shapes.append(z.shape) is None else z)
    conductor = Conductor([act, Skip(torch.ones(2, 3, 4))], rows=2)
    states = conducted(base, conductor, x)
    record = conductor.records[0]
    assert shapes == [(2, 3, 4)]
    assert torch.equal(record.x, x.unflatten(0, (2, 3)))
    assert torch.equal(record.x_next.flatten(0, 1), states[1])
    assert torch.equal(states[2], torch.ones(6, 4))
    assert conductor.final.shape == (2, 3, 4)


def test_a_question_is_no_action():
    """Some pipelines step twice a round, at first only for the clean prediction of stacked rows."""
    made, x, seen = stand_in_for(FlowMatchEulerDiscreteScheduler()), torch.randn(2, 4), []
    made.conduct(Conductor([Act(CoefficientPreserving(0.5), noise)], layout=LoopLayout(((0, 0),), {0: x.shape[1:]})))
    made.set_timesteps(4)
    stacked = torch.cat([x, x])
    asked = made.step(stacked, made.timesteps[0], stacked).prev_sample
    made._step_index -= 1
    assert asked.shape == stacked.shape
    seen = made.step(x, made.timesteps[0], x).prev_sample
    assert torch.equal(made._conductor.records[0].x_next, seen)
    assert made._conductor.round == 1


def test_a_bounded_prediction_is_what_the_step_is_linear_in():
    made, seen, x = stand_in_for(DDIMScheduler(clip_sample_range=0.5)), [], torch.randn(2, 4)
    made.conduct(Conductor([Look(lambda *what: seen.append(what))]))
    made.set_timesteps(4)
    out = made.step(torch.randn(2, 4), made.timesteps[0], x)
    ((state, v, grid),) = seen
    (cx, cv), _ = grid.linear(0)
    assert out.pred_original_sample.abs().max() == 0.5
    torch.testing.assert_close(cx * state + cv * v, out.pred_original_sample)


def test_a_time_that_comes_twice_has_no_round():
    made = stand_in_for(DDIMScheduler())
    made.set_timesteps(4)
    made.timesteps = torch.tensor([750, 750, 250, 0])
    made.conduct(Conductor())
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="occurs 2 times"):
        made.step(x, made.timesteps[0], x)
