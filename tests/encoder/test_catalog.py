"""The catalogue: names to models, and files to the rules that their metadata cannot hold."""

from pathlib import Path

import numpy as np
import pytest

from plimsoll.encoder import catalog
from plimsoll.encoder.architecture import Pooling
from plimsoll.encoder.catalog import describe, resolve, written_of
from plimsoll.encoder.known_models import BUILTIN, NOMIC_V1, NOMIC_V1_5
from plimsoll.errors import ModelNotFoundError

INSTRUCTION = "Represent this sentence for searching relevant passages: "


def nomic_metadata(**general):
    """What llama.cpp's converter writes for a Nomic model, as far as the catalogue looks."""
    return {
        "general.architecture": "nomic-bert",
        "nomic-bert.block_count": 12,
        "nomic-bert.embedding_length": 768,
        **{f"general.{key}": value for key, value in general.items()},
    }


def bert_metadata(name, n_layers=12, hidden=768):
    return {
        "general.architecture": "bert",
        "general.name": name,
        "bert.block_count": n_layers,
        "bert.embedding_length": hidden,
    }


class TestResolve:
    def test_builtin_is_minilm_with_its_trained_length(self):
        """256 tokens is what all-MiniLM-L6-v2 was made for; its position table says 512."""
        spec = resolve("builtin")
        assert spec.known is BUILTIN
        assert spec.name == "all-MiniLM-L6-v2"
        assert spec.file_name == "all-MiniLM-L6-v2.F32.gguf"
        assert spec.known.token_limit == 256
        assert not spec.known.task_prefixes

    @pytest.mark.parametrize("name", ["nomic-embed-text-v1.5", "Nomic-Embed-Text-V1.5"])
    def test_nomic_without_a_quantization_is_q8_0(self, name):
        """Q8_0 holds the 99.9 % promise in a quarter of the download."""
        spec = resolve(name)
        assert spec.known is NOMIC_V1_5
        assert (spec.name, spec.quant) == ("nomic-embed-text-v1.5", "Q8_0")

    @pytest.mark.parametrize(
        ("asked", "file"),
        [
            ("nomic-embed-text-v1.5:F32", "nomic-embed-text-v1.5.f32.gguf"),
            ("nomic-embed-text-v1.5:f16", "nomic-embed-text-v1.5.f16.gguf"),
            ("nomic-embed-text-v1.5:q4_k_m", "nomic-embed-text-v1.5.Q4_K_M.gguf"),
            ("nomic-embed-text-v1:Q6_K", "nomic-embed-text-v1.Q6_K.gguf"),
        ],
    )
    def test_a_quantization_names_the_file_as_the_repository_spells_it(self, asked, file):
        """The hub is case-sensitive and mixes both cases: a guess would be a 404."""
        assert resolve(asked).file_name == file

    @pytest.mark.parametrize("name", ["nomic-embed-text", "nomic-embed-text:latest"])
    def test_an_alias_with_a_colon_is_not_taken_for_a_quantization(self, name):
        """`latest` and `v1.5` are tags that clients of another server send."""
        assert resolve(name).known is NOMIC_V1_5

    def test_a_path_is_taken_as_it_is(self):
        """Any GGUF file may be served; what it is says its metadata, later."""
        spec = resolve("some/folder/My-Model.Q8_0.gguf")
        assert spec.path == Path("some/folder/My-Model.Q8_0.gguf")
        assert spec.name == "My-Model.Q8_0"
        assert spec.known is None

    @pytest.mark.parametrize("path", ["/models/blob", "./blob", "../blob", "~/blob"])
    def test_a_path_may_leave_its_ending_out(self, path):
        """Files in the hub's own cache, and in many folders, have none."""
        spec = resolve(path)
        assert (spec.path, spec.name) == (Path(path), "blob")

    @pytest.mark.parametrize(
        ("written", "file", "stored_as", "revision"),
        [
            ("hf:a/b", None, "a--b--", "main"),
            ("hf:a/b/c.Q8_0.gguf", "c.Q8_0.gguf", "a--b--c.Q8_0.gguf", "main"),
            ("HF:a/b/sub/c.gguf", "sub/c.gguf", "a--b--sub--c.gguf", "main"),
            ("hf:a/b/c.gguf@v1", "c.gguf", "a--b@v1--c.gguf", "v1"),
            ("hf:a/b@refs/pr/1", None, "a--b@refs--pr--1--", "refs/pr/1"),
        ],
    )
    def test_a_file_of_the_hub_is_named_by_its_place(self, written, file, stored_as, revision):
        """Two repositories may have files of one name; ours must not be taken for each other."""
        spec = resolve(written)
        hub = spec.hub
        assert (hub.repository, hub.file, hub.revision) == ("a/b", file, revision)
        assert spec.file_name == stored_as
        assert spec.name == written[3:]

    @pytest.mark.parametrize(
        "written", ["hf:", "hf:a", "hf:a/../b.gguf", "hf:a/b/c.txt", "hf:a/b/../c.gguf", "hf:-a/b"]
    )
    def test_what_names_no_file_of_the_hub_is_refused_with_the_form(self, written):
        """A part such as ".." would be looked up outside the repository."""
        with pytest.raises(ModelNotFoundError, match="write hf:owner/repo"):
            resolve(written)

    @pytest.mark.parametrize(
        ("names", "chosen"),
        [
            (["README.md", "only.gguf"], "only.gguf"),
            (["m.Q4_0.gguf", "m-q8_0.gguf", "m.F16.gguf"], "m-q8_0.gguf"),
            (["m.Q4_0.gguf", "m.f16.gguf"], "m.f16.gguf"),
            (["m.Q8_0.gguf", "n.Q8_0.gguf"], None),
            (["m.IQ1.gguf", "m.IQ2.gguf"], None),
            (["model.safetensors"], None),
        ],
    )
    def test_of_a_repository_the_file_that_fits_best_is_taken(self, names, chosen):
        """Where two fit alike the user is asked, not guessed for."""
        assert catalog.choose_file(names) == chosen

    @pytest.mark.parametrize(
        "written", ["builtin", "nomic-embed-text-v1.5:Q8_0", "nomic-embed-text-v1:F16"]
    )
    def test_a_stored_file_goes_by_the_name_that_it_was_asked_for_with(self, written):
        """What a list shows can be given to the next command."""
        assert written_of(resolve(written).file_name) == written

    def test_an_unknown_name_is_answered_with_the_list_and_a_guess(self):
        """A user who mistypes must see the right spelling, not search for it."""
        with pytest.raises(ModelNotFoundError, match=r"mean 'nomic-embed-text-v1.5'\?") as caught:
            resolve("nomic-embd-text-v1.5")
        for model in catalog.MODELS:
            assert model.name in str(caught.value)
        assert "hf:owner/repo" in str(caught.value)

    def test_an_unknown_quantization_is_answered_with_those_there_are(self):
        """The list is short; a download that ends in 404 would say less."""
        with pytest.raises(ModelNotFoundError, match=r"Q9_9.*Q8_0, F32, F16, Q6_K, Q5_K_M"):
            resolve("nomic-embed-text-v1.5:Q9_9")
        with pytest.raises(ModelNotFoundError, match="there are F32"):
            resolve("builtin:Q8_0")

    def test_every_name_and_alias_leads_to_one_model_only(self):
        """A name that two models share would make the served model a matter of order."""
        names = [n.lower() for m in catalog.MODELS for n in (m.name, *m.aliases)]
        assert len(names) == len(set(names))
        for model in catalog.MODELS:
            for name in (model.name, *model.aliases):
                assert resolve(name).known is model


class TestNomic:
    def test_v1_5_has_the_published_prefixes_and_sizes(self):
        """The model card's rules: without them the vectors are other than everyone else's."""
        assert NOMIC_V1_5.task_prefixes == {
            task: f"{task}: "
            for task in ("search_query", "search_document", "classification", "clustering")
        }
        assert NOMIC_V1_5.trained_dimensions == (768, 512, 256, 128, 64)
        assert NOMIC_V1_5.layer_norm_before_cut
        assert NOMIC_V1_5.token_limit == 8192
        assert NOMIC_V1_5.scales_rotation

    def test_v1_shares_the_prefixes_but_was_not_trained_to_be_shortened(self):
        """Cutting v1 vectors loses far more than cutting v1.5 ones, so nothing may suggest it."""
        assert NOMIC_V1.task_prefixes == NOMIC_V1_5.task_prefixes
        assert NOMIC_V1.trained_dimensions == ()
        assert not NOMIC_V1.layer_norm_before_cut


class TestDescribe:
    @pytest.mark.parametrize(
        "general",
        [
            {"name": "nomic-embed-text-v1.5"},
            {"name": "Nomic Embed Text v1.5"},
            {"name": "nomic-ai/nomic-embed-text-v1.5"},
            {"basename": "nomic-embed-text", "version": "v1.5"},
        ],
    )
    def test_a_local_nomic_file_gets_nomics_rules(self, general):
        """The same weights must give the same vectors, wherever the file came from."""
        assert describe(nomic_metadata(**general)) is NOMIC_V1_5

    def test_v1_is_told_from_v1_5(self):
        """Their shapes are equal, so the name alone decides; a prefix match would not do."""
        assert describe(nomic_metadata(name="nomic-embed-text-v1")) is NOMIC_V1
        assert describe(nomic_metadata(name="Nomic Embed Text v1")) is NOMIC_V1

    @pytest.mark.parametrize(
        "metadata",
        [
            nomic_metadata(name="nomic-embed-text-v1.5") | {"nomic-bert.block_count": 6},
            nomic_metadata(name="nomic-embed-text-v1.5") | {"general.architecture": "bert"},
            nomic_metadata(name="nomic-embed-text-v1-unsupervised"),
            nomic_metadata(name="nomic-embed-text-v2"),
            nomic_metadata(name="Nomic Bert 2048"),
        ],
    )
    def test_a_relative_is_not_given_anothers_rules(self, metadata):
        """Prefixes that a model was not trained with change its vectors for the worse."""
        found = describe(metadata)
        assert not found.task_prefixes
        assert found.trained_dimensions == ()
        assert found.token_limit is None

    def test_the_builtins_own_file_is_recognised(self):
        """Served by path, the built-in must keep its 256 tokens."""
        assert describe(bert_metadata("all-MiniLM-L6-v2", 6, 384)) is BUILTIN
        assert describe(bert_metadata("All MiniLM L6 v2", 6, 384)) is BUILTIN

    @pytest.mark.parametrize("name", ["E5 Base v2", "e5-small", "multilingual-e5-large"])
    def test_the_e5_family_gets_query_and_passage(self, name):
        """E5's card: every text carries one of the two, also for other tasks than search."""
        found = describe(bert_metadata(name))
        assert found.task_prefixes == {"search_query": "query: ", "search_document": "passage: "}
        assert found.recommends_input_type
        assert found.name == name.lower().replace(" ", "-")

    def test_an_e5_that_follows_instructions_is_left_alone(self):
        """Its query format is another, and free text: no fixed prefix is right."""
        assert not describe(bert_metadata("multilingual-e5-large-instruct")).task_prefixes

    @pytest.mark.parametrize("size", ["small", "base", "large"])
    def test_bge_has_a_prefix_for_queries_only(self, size):
        """BGE's documents are embedded bare."""
        found = describe(bert_metadata(f"Bge {size.title()} En v1.5"))
        assert list(found.task_prefixes) == ["search_query"]
        assert found.task_prefixes["search_query"].endswith("relevant passages: ")

    @pytest.mark.parametrize(
        ("name", "prefix"),
        [
            ("bge-base-en", INSTRUCTION),
            ("BGE Large EN", INSTRUCTION),
            ("bge-small-zh-v1.5", "为这个句子生成表示以用于检索相关文章："),
            ("bge-base-zh", "为这个句子生成表示以用于检索相关文章："),
            ("snowflake-arctic-embed-xs", INSTRUCTION),
            ("Snowflake Arctic Embed M", INSTRUCTION),
            ("snowflake-arctic-embed-l", INSTRUCTION),
            ("snowflake-arctic-embed-m-v1.5", INSTRUCTION),
            ("snowflake-arctic-embed-l-v2.0", "query: "),
            ("snowflake-arctic-embed-m-v2.0", "query: "),
        ],
    )
    def test_families_whose_queries_alone_have_an_instruction(self, name, prefix):
        """Documents go in bare, and the first token is the vector."""
        found = describe(bert_metadata(name))
        assert found.task_prefixes == {"search_query": prefix}
        assert found.has_rule("search_document")
        assert not found.has_rule("clustering")
        assert found.pooling is Pooling.CLS

    def test_mxbai_large_has_the_instruction_of_its_card(self):
        """The size tells it from its relatives, which have other rules."""
        found = describe(bert_metadata("mxbai-embed-large-v1", 24, 1024))
        assert found.task_prefixes == {"search_query": INSTRUCTION}
        assert not describe(bert_metadata("mxbai-embed-xsmall-v1", 6, 384)).task_prefixes

    def test_arctics_long_model_is_a_nomic_bert_without_nomics_rules(self):
        """It grew out of Nomic's unsupervised model, and pools by its first token."""
        metadata = nomic_metadata(name="snowflake-arctic-embed-m-long")
        found = describe(metadata)
        assert found.task_prefixes == {"search_query": INSTRUCTION}
        assert found.pooling is Pooling.CLS
        assert not found.scales_rotation

    def test_arctic_v1_5_was_trained_for_256_values(self):
        """Its predecessor was not."""
        shortened = describe(bert_metadata("snowflake-arctic-embed-m-v1.5"))
        assert shortened.trained_dimensions == (768, 256)
        assert not describe(bert_metadata("snowflake-arctic-embed-m")).trained_dimensions

    @pytest.mark.parametrize("name", ["gte-small", "GTE Base", "gte-large"])
    def test_gte_has_no_prefix_by_rule(self, name):
        """Trained without any; a warning would send its users looking for one."""
        found = describe(bert_metadata(name))
        assert not found.task_prefixes
        assert found.has_rule("search_query")
        assert found.pooling is Pooling.MEAN

    @pytest.mark.parametrize(
        "name",
        ["bge-m3", "bge-reranker-base", "bge-base-en-v2", "gte-base-en-v1.5", "gte-qwen2", "gte-1"],
    )
    def test_a_relative_of_another_kind_has_no_rule(self, name):
        """Its card says something else, or nothing."""
        found = describe(bert_metadata(name))
        assert not found.task_prefixes
        assert not found.has_rule("search_query")
        assert found.pooling is None

    def test_a_file_without_a_name_is_described_all_the_same(self):
        """A name is optional in GGUF; its lack must not stop a model from being served."""
        found = describe({"general.architecture": "bert"})
        assert found.name == "unknown"
        assert found.source is None
        assert found.prefix_scheme == "none"


def test_a_models_prefixes_cannot_be_changed():
    """They are part of the vector space's name: one careless write would mix two spaces."""
    with pytest.raises(TypeError):
        NOMIC_V1_5.task_prefixes["search_query"] = ""


def test_metadata_of_odd_types_names_nothing():
    """A hostile file may put an array where a name belongs; it is then a file of no known model."""
    odd = {
        "general.name": np.zeros(3),
        "general.basename": ["a"],
        "general.architecture": np.ones(2),
    }
    assert describe(odd).name == "unknown"
