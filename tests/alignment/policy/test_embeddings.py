"""Prompts are encoded once, and the pictures do not show it."""

from typing import ClassVar

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from alignment.errors import EnvironmentProblem, PipelineError
from alignment.policy.embeddings import Embeddings, text_encoders
from alignment.policy.prepare import prepare
from samplers import Conductor
from tests.support.policies import CASES, PROMPTS, build, counted, plain
from tests.support.tiny import SD15_CALL, call_of, tiny_flux, tiny_sd15
from tests.support.trained import SAME

ROWS = 1e-5
"""A matrix product rounds differently with another number of rows."""
SEEDS = torch.tensor([3, 4])


@pytest.fixture
def folder_of(flux_folder, sd15_folder):
    return lambda case: {"flux": flux_folder, "sd15": sd15_folder}[case.split()[0]]


def remembered(pipe, folder=None):
    """Give a pipeline a memory."""
    memory = Embeddings(pipe, folder)
    vars(pipe)["encode_prompt"] = memory
    return memory


def draw(pipe, prompts, **call):
    generator = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return pipe(list(prompts), generator=generator, output_type="pt", **{**call_of(pipe), **call}).images


@pytest.mark.parametrize("case", CASES)
def test_the_encoders_run_once_a_prompt_and_then_leave(case, folder_of):
    policy = build(folder_of(case), CASES[case], ready=False)
    encoder = policy.pipe.text_encoder
    with counted(encoder) as rows:
        prepare(policy, PROMPTS)
        # The first prompt is encoded twice over once more, to see what is indexed by row; texts such as a negative
        # prompt come in the same call or in one of their own.
        assert len(rows) <= 2 * (len(PROMPTS) + 1) + 1
        assert policy.embeddings.misses == len(PROMPTS) + (case == "flux guided")
        rows.clear()
        policy.call(Conductor(), PROMPTS, SEEDS, pixels=False)
        policy.generate(PROMPTS, SEEDS, {})
        assert rows == []
    assert text_encoders(policy.pipe) == {}
    assert policy.pipe.text_encoder is None


@pytest.mark.parametrize("make", [tiny_flux, tiny_sd15])
def test_pictures_with_and_without_a_memory(make):
    without, with_memory = make(), make()
    memory = remembered(with_memory)
    expected = draw(without, PROMPTS)
    for _ in range(2):
        torch.testing.assert_close(draw(with_memory, PROMPTS), expected, atol=ROWS, rtol=0)
    torch.testing.assert_close(draw(with_memory, PROMPTS[::-1]), draw(without, PROMPTS[::-1]), atol=ROWS, rtol=0)
    assert memory.cacheable
    assert memory.misses == 2


def test_what_is_common_to_all_rows_stays_one():
    pipe = tiny_flux()
    memory = remembered(pipe)
    embeds, pooled, ids = memory(list(PROMPTS), None, max_sequence_length=24)
    assert embeds.shape[0] == pooled.shape[0] == 2
    assert ids.shape == (24, 3)


def test_guidance_and_none_are_kept_apart():
    pipe, without = tiny_sd15(), tiny_sd15()
    memory = remembered(pipe)
    for call in (
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "negative_prompt": ["x"] * 2},
    ):
        torch.testing.assert_close(draw(pipe, PROMPTS, **call), draw(without, PROMPTS, **call), atol=ROWS, rtol=0)
    assert memory(["a"], "cpu", 1, False)[1] is None
    assert memory(["a", "b"], "cpu", 1, True)[1].shape[0] == 2


@pytest.mark.parametrize("make", [tiny_flux, tiny_sd15])
def test_several_images_a_prompt(make):
    without, with_memory = make(), make()
    remembered(with_memory)
    found, expected = (
        pipe(
            list(PROMPTS),
            num_images_per_prompt=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **call_of(pipe),
        ).images
        for pipe in (with_memory, without)
    )
    assert len(found) == 4
    torch.testing.assert_close(found, expected, atol=ROWS, rtol=0)


def test_a_folder_serves_the_next_process(tmp_path):
    first = tiny_flux()
    remembered(first, tmp_path)
    expected = draw(first, PROMPTS)
    second = tiny_flux()
    memory = remembered(second, tmp_path)
    assert torch.equal(draw(second, PROMPTS), expected)
    assert memory.misses == 0
    draw(second, ["something new"])
    assert memory.misses == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_other_encoders_do_not_read_it(tmp_path):
    remembered(tiny_flux(), tmp_path)(["a"], None)
    for change in (
        lambda pipe: weight_of(pipe).add_(1e-3),
        lambda pipe: setattr(pipe.tokenizer, "model_max_length", 9),
    ):
        other = tiny_flux()
        with torch.no_grad():
            change(other)
        memory = remembered(other, tmp_path)
        memory(["a"], None)
        assert memory.misses == 1
    same = remembered(tiny_flux(), tmp_path)
    same(["a"], None)
    assert same.misses == 0


def weight_of(pipe):
    return max(pipe.text_encoder_2.parameters(), key=torch.numel)


def test_memory_forgets_what_the_folder_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr("alignment.policy.embeddings._IN_MEMORY", 2)
    pipe = tiny_flux()
    memory = remembered(pipe, tmp_path)
    for text in ("a", "b", "c", "d"):
        memory([text], None)
    assert len(memory._rows) == 2
    memory(["a", "b", "c", "d"], None)
    assert memory.misses == 4


def test_a_prompt_nobody_announced(flux_folder, sd15_folder):
    for folder, call in ((flux_folder, CASES["flux"]), (sd15_folder, SD15_CALL)):
        policy = build(folder, call)
        with pytest.raises(
            PipelineError, match=r"no embedding of \['a green dog'\].*has to be given to Policy.prepare"
        ):
            policy.generate(("a green dog",), SEEDS[:1], {})
    with pytest.raises(PipelineError, match="no embedding"):
        policy.generate(PROMPTS, SEEDS, {"guidance_scale": 1.0})


def test_held_out_prompts_are_embedded_as_they_will_be_called(sd15_folder):
    policy = build(sd15_folder, {**SD15_CALL, "guidance_scale": 1.0}, ready=False)
    evaluation = {"guidance_scale": 4.0, "num_inference_steps": 7, "negative_prompt": "blurry"}
    prepare(policy, PROMPTS, ("a green dog", "a tree"), evaluation)
    found = policy.generate(("a green dog",), SEEDS[:1], evaluation).pixels[:, 0]
    pipe = DiffusionPipeline.from_pretrained(sd15_folder)
    pipe.set_progress_bar_config(disable=True)
    call = {**call_of(pipe), **evaluation, "negative_prompt": ["blurry"]}
    generator = [torch.Generator().manual_seed(3)]
    expected = pipe(["a green dog"], generator=generator, output_type="pt", **call).images
    torch.testing.assert_close(found, expected, atol=ROWS, rtol=0)
    policy.call(Conductor(), PROMPTS, SEEDS, pixels=False)


class Ragged:
    """A pipeline whose embeddings are as long as the longest prompt of the batch."""

    def __init__(self):
        self.text_encoder = nn.Embedding(128, 4)
        self.components = {"text_encoder": self.text_encoder}
        self.text_encoder.config = {}
        self._execution_device = torch.device("cpu")

    def encode_prompt(self, prompt):
        longest = max(map(len, prompt))
        return (torch.stack([self.text_encoder(torch.tensor(list(text.ljust(longest).encode()))) for text in prompt]),)


def test_prompts_of_other_shapes_are_never_mixed():
    pipe = Ragged()
    own, memory = pipe.encode_prompt, remembered(pipe)
    assert torch.equal(memory(["ab"])[0], own(["ab"])[0])
    for batch in (["ab", "abcd"], ["cd", "abcdef"]):
        assert torch.equal(memory(batch)[0], own(batch)[0])
    assert not memory.cacheable
    memory.release()
    assert pipe.text_encoder is not None


class Answering:
    """A pipeline that answers as `answer` makes it, of one tensor a prompt."""

    components: ClassVar = {}
    _execution_device = torch.device("cpu")

    def __init__(self, answer):
        self.answer = answer

    def encode_prompt(self, prompt):
        return self.answer([torch.full((len(text), 2), float(len(text))) for text in prompt])


@pytest.mark.parametrize(
    "answer", [lambda z: z, lambda z: (z, None, torch.ones(3))], ids=["a list", "a tuple with one"]
)
def test_lists_of_one_entry_a_row_are_kept(answer, tmp_path):
    for _ in range(2):  # the second time from the disk
        pipe = Answering(answer)
        own, memory = pipe.encode_prompt, remembered(pipe, tmp_path)
        for prompts in (["a"], ["ab", "a"], ["abc", "a", "ab"]):
            found, expected = memory(prompts), own(prompts)
            assert type(found) is type(expected)
            torch.testing.assert_close(found, expected)
        assert memory.cacheable
    assert memory.misses == 0


def test_answers_of_another_structure_are_passed_on():
    pipe = Answering(lambda z: {"embeds": z})
    memory = remembered(pipe)
    assert len(memory(["a", "b"])["embeds"]) == 2
    assert not memory.cacheable


def test_a_text_alone_is_passed_on():
    pipe = tiny_flux()
    own, memory = pipe.encode_prompt, remembered(pipe)
    assert torch.equal(memory("a", None)[0], own("a", None)[0])
    assert memory.misses == 0
    assert memory.cacheable
    memory(["a"], None)
    memory.release()  # what could not be answered from memory will be asked for again
    assert pipe.text_encoder is not None
    assert torch.equal(memory("a", None)[0], own("a", None)[0])


def test_a_damaged_file_is_encoded_and_written_again(tmp_path):
    remembered(tiny_flux(), tmp_path)(["a"], None)
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    memory = remembered(tiny_flux(), tmp_path)
    memory(["a"], None)
    assert memory.misses == 1
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"policy\.embedding_cache: .*taken cannot be written"):
        remembered(tiny_flux(), tmp_path / "taken")(["a"], None)


def test_scouts_are_what_the_pipeline_makes_with_their_arguments(sd15_folder):
    policy = build(sd15_folder, SD15_CALL, ready=False)
    scout = {"guidance_scale": 1.0, "num_inference_steps": 2}
    prepare(policy, PROMPTS, scout=scout)
    assert policy.embeddings.released
    # What is known of the policy's own loop is as it was afterwards.
    for arguments in (scout, {}):
        found = policy.call(Conductor(), PROMPTS, SEEDS, pixels=True, arguments=arguments or None)
        wanted = plain(sd15_folder, PROMPTS, SEEDS.tolist(), {**SD15_CALL, **arguments})
        torch.testing.assert_close(found[:, 0], wanted, rtol=0, atol=SAME)
