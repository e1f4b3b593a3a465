# visalign in a container, on a CPU or an NVIDIA GPU.
#   docker build -t visalign .
#   docker build -t visalign:cuda --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
#   docker run --rm --user "$(id -u)" -v "$PWD:/work" visalign train my.yaml        with --gpus all for the second
# The base brings the system, and CUDA's libraries where programs beside PyTorch want them; PyTorch's wheels bring their own.
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/*

# The index of PyTorch's wheels; https://download.pytorch.org/whl/cpu makes an image without CUDA, several GB smaller.
ARG TORCH_INDEX=https://pypi.org/simple
ARG EXTRAS=triton,wandb,tensorboard,data
COPY pyproject.toml README.md LICENSE /source/
COPY alignment /source/alignment
COPY reward_models /source/reward_models
COPY samplers /source/samplers
COPY evals /source/evals
COPY configs /source/configs
RUN python3 -m venv /opt/visalign \
    && /opt/visalign/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch torchvision \
    && /opt/visalign/bin/pip install --no-cache-dir "/source[${EXTRAS}]" \
    && rm -rf /source

# Caches go beside the runs, where any user may write that the folder belongs to.
ENV PATH=/opt/visalign/bin:$PATH HOME=/work
WORKDIR /work
ENTRYPOINT ["visalign"]
