# syntax=docker/dockerfile:1
# Serves a bundle:  docker build -t gems-sr .
#                   docker run -p 8000:8000 -v /path/to/bundle:/bundle:ro gems-sr

FROM python:3.11-slim AS build
WORKDIR /src
# A mirror, or an index with CPU builds of torch:  --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# For traces:  --build-arg EXTRAS=[otel]
ARG EXTRAS
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Dependencies first: they change less often than the code.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir gems index server training && touch gems/__init__.py index/__init__.py server/__init__.py training/__init__.py \
    && pip install -c constraints.txt ".${EXTRAS}"
COPY gems gems
COPY index index
COPY server server
COPY training training
RUN rm -rf build *.egg-info && pip install --no-deps --force-reinstall .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 gems && install -d -o gems -g gems -m 700 /people
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER gems
WORKDIR /home/gems
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"GEMS_PORT\", 8000)}/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "server"]
CMD ["/bundle", "--host", "0.0.0.0"]
