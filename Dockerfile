# pinstream in a container: `docker run --env-file pinstream.env -v pinstream-state:/var/lib/pinstream pinstream`.
# The first stage builds, the second holds Python and what was built, and runs as a user without rights.

# Any Debian with Python 3.11 or newer as python3: the official image, or one with Debian's own package. A release names it
# with its digest.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# For the modules that are compiled: without them the build fails. The compiler stays in this stage.
# Debian's own Python has its headers and its venv in packages of their own; the official image has both.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends gcc libc6-dev \
    $(test "$(command -v python3)" != /usr/bin/python3 || echo python3-dev python3-venv)
COPY constraints.txt pyproject.toml README.md LICENSE hatch_build.py ./
# The build backend is locked like the rest, so the build itself fetches nothing. pip comes by its lines of the lock: an
# older one finds no hash in a constraint. The backend has an environment of its own, with
# pip; pinstream's has neither. The secret `pip` is a pip.conf, for an index of your own; the image does not keep it.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/build \
 && sed -n '/^pip==/,/[^\\]$/p' constraints.txt >/opt/build/pip.txt \
 && /opt/build/bin/python -m pip install --require-hashes --requirement /opt/build/pip.txt \
 && /opt/build/bin/python -m pip install --require-hashes --constraint constraints.txt --group build
COPY consumer consumer
COPY schemas schemas
COPY examples examples
# With the extras: a shared key store, traces and AWS are a matter of settings, not of another image.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/python -m pip wheel --no-build-isolation --no-deps --wheel-dir /wheels . \
 && python3 -m venv --without-pip /opt/pinstream \
 && echo "pinstream[redis,otel,phones,msk,glue] @ file://$(echo /wheels/*.whl)" \
    "--hash=sha256:$(sha256sum /wheels/*.whl | cut -c 1-64)" >/wheels/pinstream.txt \
 && /opt/build/bin/python -m pip --python /opt/pinstream/bin/python install --require-hashes --constraint constraints.txt \
    --requirement /wheels/pinstream.txt
# Out goes what pinstream never reads, a third of the size: botocore's descriptions of all services but Glue and those that
# give credentials, pycountry's translations, and what only a debugger reads in shared libraries (docs/operate.md, "The image").
RUN cd /opt/pinstream/lib/python3*/site-packages \
 && find botocore/data -mindepth 1 -maxdepth 1 -type d \
    ! -name glue ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} + \
 && rm -rf pycountry/locales pycountry/tests \
 && find . -type f -name '*.so*' -exec strip --strip-unneeded {} +

FROM ${BASE}
# A release adds version, revision, source, time, and the base with its digest: --label.
LABEL org.opencontainers.image.title="pinstream" \
      org.opencontainers.image.description="Commerce events from Kafka to the Pinterest Conversions API: none lost, in time." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 pinstream \
 && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/pinstream --shell /usr/sbin/nologin pinstream \
 && install -d -o pinstream -g pinstream -m 0750 /var/lib/pinstream
COPY --from=build /opt/pinstream /opt/pinstream
ENV PATH="/opt/pinstream/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PINSTREAM_STATE_DIR=/var/lib/pinstream
# What is in the image, Debian's packages and Python's.
RUN --mount=type=bind,source=.ci,target=/mnt python /mnt/sbom.py / >/opt/pinstream/sbom.cdx.json
USER 10001
WORKDIR /var/lib/pinstream
VOLUME /var/lib/pinstream
EXPOSE 8080
# Asked past any http_proxy: it is about this container. Without an HTTP address there is nothing to ask, and the process itself is the sign.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; port = os.environ.get('PINSTREAM_HTTP_ADDRESS', ':8080').rpartition(':')[2]; port and r.build_opener(r.ProxyHandler({})).open(f'http://127.0.0.1:{port}/healthz', timeout=4)"]
# Exec form: pinstream is process 1 and gets SIGTERM itself. Give it more than PINSTREAM_SHUTDOWN_GRACE to end.
ENTRYPOINT ["pinstream"]
CMD ["run"]
