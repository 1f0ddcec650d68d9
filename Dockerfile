# An image of `charwright serve` without a compiler and without PyTorch, which generating text does not need.
# docs/how-to/serve.md shows how to run it.

FROM python:3.13-slim AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake gcc libc6-dev ninja-build \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# Without its kernels the service would be slow, so their absence is an error here.
ENV CHARWRIGHT_REQUIRE_KERNELS=1 PIP_CONSTRAINT=/source/constraints.txt PIP_BUILD_CONSTRAINT=/source/constraints.txt
RUN pip wheel --no-deps --wheel-dir /wheels .
# Only what the service imports, which the wheel's own requirements exceed. The environment needs no pip.
RUN python -m venv --without-pip /opt/charwright
RUN pip --python /opt/charwright/bin/python install --no-cache-dir \
    click httptools numpy platformdirs prometheus-client pydantic rich safetensors starlette uvicorn
RUN pip --python /opt/charwright/bin/python install --no-cache-dir --no-deps /wheels/*.whl

FROM python:3.13-slim
# A fixed number, by which the files of a mounted volume can be made readable. The user has no home and no shell.
RUN groupadd --system --gid 10001 charwright \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin charwright
COPY --from=builder /opt/charwright /opt/charwright
# Nothing is written: all bytecode was compiled by pip, and the root file system may be read-only.
ENV PATH=/opt/charwright/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /runs
EXPOSE 8000
# Without a proxy, since the variables of the container may name one.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8000/healthz', timeout=4)"]
# The service is the first process, so that SIGTERM reaches it and accepted texts are completed.
ENTRYPOINT ["charwright", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--help"]
