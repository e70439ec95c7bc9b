# Plimsoll with its built-in model in it, so that it answers without a network.
#
#   docker build --tag plimsoll .
#   docker run --publish 127.0.0.1:8080:8080 --memory 512m --read-only --tmpfs /tmp plimsoll
#
# It asks for no key, so publish it on 127.0.0.1 alone, or set PLIMSOLL_API_KEYS.
#
# Behind a package mirror, or a proxy with certificates of its own, give the build pip's
# configuration and the authorities to trust; as secrets, they are in no layer:
#
#   docker build --secret id=pip_conf,src=$HOME/.config/pip/pip.conf \
#       --secret id=ca_bundle,src=/etc/ssl/certs/ca-certificates.crt --tag plimsoll .

# What links to databases need is in it; what else may be is named by the build (locks/ has them all;
# parquet takes 170 MB):
#
#   docker build --build-arg EXTRAS="postgres qdrant parquet tracing" --tag plimsoll .

ARG BASE=python:3.12-slim


FROM ${BASE} AS builder
ARG EXTRAS="postgres qdrant"
ENV PATH=/opt/plimsoll/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/plimsoll
# Apart from the code, so that a change of the code does not install them again.
COPY requirements.lock ./
COPY locks locks
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt \
    for extra in ${EXTRAS}; do cat "locks/${extra}.lock" || exit 1; done >extras.lock \
    && pip install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement requirements.lock --requirement extras.lock
COPY LICENSE NOTICE README.md pyproject.toml ./
COPY app app
COPY grafana grafana
RUN pip install --no-cache-dir --no-index --no-deps --no-build-isolation . \
    && pip uninstall --yes setuptools


FROM builder AS model
ENV PLIMSOLL_CACHE_DIR=/var/cache/plimsoll
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt \
    plimsoll pull


FROM builder AS bill
# What the packages in /opt/plimsoll are, with their licences, by a tool that stays behind.
COPY scripts/sbom.py /opt/sbom.py
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/ssl/certs/ca-certificates.crt \
    python -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement locks/tools/requirements.lock \
    && /opt/tools/bin/python /opt/sbom.py /opt/plimsoll/bin/python /opt/sbom.cdx.json


FROM ${BASE}
LABEL org.opencontainers.image.title="Plimsoll" \
      org.opencontainers.image.description="Text embeddings inside a memory budget" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/cache/plimsoll \
        --shell /usr/sbin/nologin plimsoll \
    && install --directory --owner plimsoll --group plimsoll --mode 0700 \
        /var/cache/plimsoll /var/lib/plimsoll
# The model before the code: its bytes are the same whenever it is made, so this layer stays when
# the code changes. Sidecars stay behind, as they name the very file that they were made from.
COPY --from=model --chown=10001:10001 /var/cache/plimsoll/built /var/cache/plimsoll/built
COPY --from=builder /opt/plimsoll /opt/plimsoll
COPY --from=bill /opt/sbom.cdx.json /opt/plimsoll/share/plimsoll/sbom.cdx.json
ENV PATH=/opt/plimsoll/bin:$PATH \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_XET=1 \
    MALLOC_ARENA_MAX=2 \
    ORT_DISABLE_TELEMETRY=1 \
    PLIMSOLL_ALLOW_ANONYMOUS=true \
    PLIMSOLL_CACHE_DIR=/var/cache/plimsoll \
    PLIMSOLL_DATA_DIR=/var/lib/plimsoll \
    PLIMSOLL_HOST=0.0.0.0 \
    PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME ["/var/cache/plimsoll", "/var/lib/plimsoll"]
EXPOSE 8080
# Straight to this container: a proxy that the environment names cannot reach it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-I", "-c", "\
import os, urllib.request as request; \
port = os.environ.get('PLIMSOLL_PORT') or 8080; \
direct = request.build_opener(request.ProxyHandler({})); \
direct.open(f'http://127.0.0.1:{port}/health/live', timeout=4)"]
ENTRYPOINT ["plimsoll"]
CMD ["serve"]
