# spm serve in a container. Build:  docker build -t semipermeable .
# The image holds the package and its bundled model; configuration, membranes and records are in the volume /data.
# Another base with a `python` of 3.11 to 3.13 and its venv module:  --build-arg BASE=...
ARG BASE=docker.io/library/python:3.12-slim
# torch is by default the build with CUDA, several GB. A further package index, one that has CPU builds of the same
# version, makes an image a fifth of that size:  --build-arg PIP_EXTRA_INDEX_URL=...
FROM ${BASE} AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir -c constraints.txt ".[serve]"

FROM ${BASE}
COPY --from=build /venv /venv
RUN useradd --system --uid 10001 --no-create-home spm && mkdir /data && chown spm /data
USER spm
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HOME=/tmp
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["spm", "serve"]
CMD ["--config", "/data/server.toml"]
