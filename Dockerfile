# syntax=docker/dockerfile:1
# Serves a bundle:  docker build -t gems-sr .
#                   docker run -p 8000:8000 -v /path/to/bundle:/bundle:ro gems-sr
# Targets: cpu (the default), cuda, vllm; see docs/operations.md, Images.

FROM python:3.11-slim AS build
WORKDIR /src
# A mirror, or a further index, such as PyTorch's own of CPU builds, which the target cpu needs.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# More of the extras, with commas between them:  --build-arg EXTRAS=redis,otel
ARG EXTRAS
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
# Dependencies first: they change less often than the code.
COPY pyproject.toml constraints.txt constraints-vllm.txt README.md LICENSE ./
RUN mkdir gems index server training \
    && touch gems/__init__.py index/__init__.py server/__init__.py training/__init__.py

FROM build AS wheel
COPY gems gems
COPY index index
COPY server server
COPY training training
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM build AS build-cpu
RUN pip install --no-compile -c constraints.txt torch==2.13.0+cpu \
    || { echo "the target cpu needs a CPU build of torch: name an index that has it by --build-arg PIP_EXTRA_INDEX_URL" >&2; exit 1; }
RUN pip install --no-compile -c constraints.txt ".[serve${EXTRAS:+,$EXTRAS}]"
COPY --from=wheel /wheels /wheels
# Without torch's headers and the programs of its tests, and without the tests of others.
RUN cd /venv/lib/python3.11/site-packages \
    && rm -rf torch/include torch/test torch/bin/test_* torch/bin/*Test torch/bin/protoc* \
    && find sympy networkx -type d -name tests -prune -exec rm -rf {} +
# Modules are compiled for good: the server cannot write them at its start, and by their times they would seem changed,
# which the layers of an image round. (Left out: the few files of packages that are no Python of this version.)
RUN pip install --no-compile --no-deps --force-reinstall /wheels/*.whl && python -m pip uninstall --yes --quiet pip \
    && { python -m compileall -qf --invalidation-mode unchecked-hash /venv/lib || true; }

FROM build AS build-cuda
RUN pip install --no-compile -c constraints.txt torch==2.13.0
RUN pip install --no-compile -c constraints.txt ".[serve${EXTRAS:+,$EXTRAS}]"
COPY --from=wheel /wheels /wheels
RUN pip install --no-compile --no-deps --force-reinstall /wheels/*.whl && python -m pip uninstall --yes --quiet pip \
    && { python -m compileall -qf --invalidation-mode unchecked-hash /venv/lib || true; }

# vLLM pins its own torch and transformers. An old pip does not find the versions of CUDA that it agrees on.
FROM build AS build-vllm
RUN pip install --no-compile "pip>=26" && pip install --no-compile ".[vllm${EXTRAS:+,$EXTRAS}]"
COPY --from=wheel /wheels /wheels
RUN pip install --no-compile --no-deps --force-reinstall /wheels/*.whl && python -m pip uninstall --yes --quiet pip \
    && { python -m compileall -qf --invalidation-mode unchecked-hash /venv/lib || true; }

FROM python:3.11-slim AS run
RUN useradd --create-home --uid 10001 gems && install -d -o gems -g gems -m 700 /people
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER gems
WORKDIR /home/gems
EXPOSE 8000
# In the format of Docker only: images of the OCI format have no health check (compose.yaml and docs/operations.md).
HEALTHCHECK --interval=15s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"GEMS_PORT\", 8000)}/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "server"]
CMD ["/bundle", "--host", "0.0.0.0"]

FROM run AS vllm
# vLLM compiles small functions when it first ranks.
USER root
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
USER gems
COPY --from=build-vllm /venv /venv
ENV GEMS_ENGINE=vllm GEMS_DEVICE=cuda

FROM run AS cuda
COPY --from=build-cuda /venv /venv
ENV GEMS_DEVICE=cuda

FROM run AS cpu
COPY --from=build-cpu /venv /venv
