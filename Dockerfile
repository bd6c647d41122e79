# The service with its page and the shipped checkpoint, as an ordinary user:
#   docker build -t spectro . && docker run -p 7860:7860 -e SPECTRO_API_KEY=... spectro
FROM python:3.11-slim

RUN useradd --uid 10001 --create-home spectro
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY checkpoints/yamnet-voices ./checkpoints/yamnet-voices
COPY spectro ./spectro
RUN pip install --no-cache-dir '.[serve,onnx]'

ENV PYTHONUNBUFFERED=1
USER spectro
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["spectro", "serve", "--host", "0.0.0.0"]
