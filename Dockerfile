# d2ext on a CPU:   docker build -t d2ext .
# on a GPU:         docker build -t d2ext:cuda --build-arg BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime .
# run:              docker run --rm -v "$PWD:/work" d2ext train --data my_photos
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# The index of CPU builds; a base with PyTorch in it has its own and keeps it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLBACKEND=Agg

WORKDIR /opt/d2ext
COPY . .
# The newest PyTorch that the base allows is meant; requirements.txt bounds the rest.
# hadolint ignore=DL3013
RUN python -c "import torch, torchvision" 2>/dev/null \
      || pip install torch torchvision --index-url "${TORCH_INDEX}" \
    && pip install -r requirements.txt "setuptools<81" wheel \
    && python tools/install_detectron2.py \
    && pip install --no-build-isolation ".[export,pretrained]" \
    && d2ext --version \
    && useradd --create-home --uid 1000 d2ext

USER 1000
WORKDIR /work
ENTRYPOINT ["d2ext"]
CMD ["--help"]
