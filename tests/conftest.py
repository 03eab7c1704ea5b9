"""Fixtures that several test files share; knows nothing about any one module's tests."""

import os
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
import torch

from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.models.llamagen import LlamaGen
from visual_ar.models.nar import NAR
from visual_ar.pipeline import VisualARPipeline
from visual_ar.text_encoder import TextEncoder
from visual_ar.tokenizers.vq import VQTokenizer

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start

WORDS = ("red", "green", "apple", "tree")


def build_tiny_pipeline(text=False, **options):
    """A pipeline of real components with random weights: 4x4 tokens, pictures of 8x8 pixels."""
    torch.manual_seed(0)
    condition = {"caption_dim": 8, "caption_length": 3} if text else {"num_classes": 3}
    model = LlamaGen(
        dim=32, n_layer=2, n_head=2, vocab_size=16, grid_size=4, ffn_dim=48, **condition
    )
    torch.nn.init.normal_(model.output.weight, std=0.6)  # it starts at zero, where all laws agree
    tokenizer = VQTokenizer(
        channels=8,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        latent_channels=8,
        codebook_size=16,
        codebook_dim=4,
        norm_groups=4,
    )
    encoder = None
    if text:
        encoder = TextEncoder(
            words=WORDS, dim=8, depth=1, heads=2, feature_dim=8, length=3, ngram_buckets=32
        ).eval()
    names = None if text else ["cat", "dog", "frog"]
    pipe = VisualARPipeline(
        model=model.eval(),
        image_tokenizer=tokenizer.eval(),
        scheduler=SequentialDecoding(),
        text_encoder=encoder,
        height=8,
        width=8,
        **{"class_names": names, "guidance_scale": 2.0, **options},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_parallel_pipeline(pipe, **options):
    """A pipeline of a NAR model with random weights and the tokenizer of another pipeline."""
    torch.manual_seed(1)
    text = pipe.text_encoder is not None
    condition = {"caption_dim": 8, "caption_length": 3} if text else {"num_classes": 3}
    model = NAR(dim=32, n_layer=1, n_head=2, vocab_size=16, grid_size=4, ffn_dim=48, **condition)
    for head in model.outputs:
        torch.nn.init.normal_(head.weight, std=0.6)
    parts = {
        "image_tokenizer": pipe.image_tokenizer,
        "text_encoder": pipe.text_encoder,
        "class_names": pipe.config.class_names,
    }
    drafter = VisualARPipeline(
        model=model.eval(),
        scheduler=GroupDecoding(),
        height=8,
        width=8,
        guidance_scale=2.0,
        **{**parts, **options},
    )
    drafter.set_progress_bar_config(disable=True)
    return drafter


@pytest.fixture
def tiny_pipeline():
    """A class-conditional pipeline with the classes cat, dog and frog; guidance 2."""
    return build_tiny_pipeline()


@pytest.fixture
def rows(tiny_pipeline, monkeypatch):
    """Rows of every pass that the tiny pipeline's model makes."""
    seen = []
    forward = tiny_pipeline.model.forward

    def counting(x, *rest):
        seen.append(len(x))
        return forward(x, *rest)

    monkeypatch.setattr(tiny_pipeline.model, "forward", counting)
    return seen


@pytest.fixture
def tiny_text_pipeline():
    """A text-conditional pipeline with a word encoder; guidance 2."""
    return build_tiny_pipeline(text=True)


@pytest.fixture(scope="session")
def make_tiny_pipeline():
    """Builds tiny pipelines: make(text=False, **options of the pipeline)."""
    return build_tiny_pipeline


@contextmanager
def serving_app(app, connections=300, seconds=20, drain=5):
    """Serves a web application as `visual-ar serve` does, from a thread; gives its address."""
    import uvicorn

    from visual_ar.app.closing import AnswerCancelled
    from visual_ar.app.connections import bounded

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            AnswerCancelled(app),
            http=bounded(connections, seconds),
            ws="none",
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=drain,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def serving():
    """Serves web applications: `with serving(app) as address`."""
    return serving_app


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, with its own store of measured windows."""
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry of packages whose `npm` is the only program on the path."""
    from local_npm import Registry

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Registry(tmp_path / "registry", tmp_path / "bin")


@pytest.fixture
def tiny_extractor():
    """torch-fidelity knows the tiny features by their name."""
    from tiny_features import TINY, TinyExtractor
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    register_feature_extractor(TINY, TinyExtractor)
    yield
    del FEATURE_EXTRACTORS_REGISTRY[TINY]


@pytest.fixture
def classes(tiny_pipeline, tmp_path):
    """Folder of a saved class-conditional pipeline."""
    tiny_pipeline.save_pretrained(tmp_path / "classes")
    return tmp_path / "classes"


@pytest.fixture
def texts(tiny_text_pipeline, tmp_path):
    """Folder of a saved text-conditional pipeline."""
    tiny_text_pipeline.save_pretrained(tmp_path / "texts")
    return tmp_path / "texts"


@pytest.fixture
def make_parallel_pipeline():
    """Builds a pipeline that draws several tokens a pass: make(pipe with its tokenizer)."""
    return build_parallel_pipeline


@pytest.fixture
def start_engine():
    """Starts engines that are closed when the test ends: start_engine(pipe, **options)."""
    from visual_ar.engine import Engine

    with ExitStack() as running:

        def start(pipe, **options):
            engine = Engine(pipe, **options)
            running.callback(engine.close, 0)
            return engine

        yield start


@pytest.fixture
def serve():
    """Serves a pipeline over HTTP: serve(pipe, name, limits, slots, queue, entrance).

    Returns the address and the engine.
    """
    from visual_ar.app.server import build
    from visual_ar.engine import Engine

    with ExitStack() as running:

        def start(pipe, name="tiny", limits=None, slots=2, queue=16, entrance=None):
            engine = Engine(pipe, slots=slots, queue=queue)
            app = build(engine, name, limits, entrance)
            address = running.enter_context(serving_app(app))
            running.callback(engine.close, 0)  # before the server ends
            return address, engine

        yield start
