# Pollard for NVIDIA GPUs. The host needs its driver and the NVIDIA Container Toolkit; the folder with recipe and data is /workspace:
#
#     docker build -t pollard .
#     docker run --rm --gpus all --ipc=host -v "$PWD:/workspace" pollard                          the playground, into ./runs
#     docker run --rm --gpus all --ipc=host -v "$PWD:/workspace" pollard my-data.yaml [key=value …]    your recipe, on all GPUs
#     docker run --rm -it --gpus all -v "$PWD:/workspace" --entrypoint pollard pollard chat runs/playground    any verb
#
# The image with nvcc: DeepSpeed compiles its optimizers for offload (finetuning.zero: 3-offload) where they run.
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git ninja-build python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# What is not of Pollard's own first: a changed line of it does not fetch torch again
WORKDIR /opt/pollard
COPY pyproject.toml constraints.txt README.md LICENSE launch.sh ./
COPY toolkit/__init__.py toolkit/train.py toolkit/
RUN ./launch.sh setup && rm -rf /root/.cache
COPY toolkit toolkit
COPY recipes recipes
COPY data data
# nvcc and torch must be of one major version of CUDA: said here, and not when a run compiles
RUN .venv/bin/python -c 'import os, torch; ours, its = os.environ["CUDA_VERSION"], torch.version.cuda; \
    assert its and its.split(".")[0] == ours.split(".")[0], f"torch {torch.__version__} wants --build-arg CUDA={its}.…, not {ours}"'

ENV PATH=/opt/pollard/.venv/bin:$PATH HF_HOME=/workspace/.cache/huggingface
WORKDIR /workspace
ENTRYPOINT ["/opt/pollard/launch.sh"]
CMD ["recipes/playground.yaml"]
