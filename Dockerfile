# docker build -t recombine . && docker run --rm --gpus all -v "$PWD:/work" recombine flips --help
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends \
    g++ pkg-config libopencv-core-dev libopencv-imgproc-dev libturbojpeg0-dev && rm -rf /var/lib/apt/lists/*
COPY . /recombine
RUN pip install --no-cache-dir "/recombine[ffcv,sweeps]" \
    && PKG_CONFIG_PATH=/recombine/scripts/ffcv_build pip install --no-cache-dir --no-deps ffcv==1.0.2
WORKDIR /work
ENTRYPOINT ["recombine"]
