# daclip over HTTP, on processors, with the bundled model inside: docker build -t daclip . && docker run -p 8000:8000 daclip
# Runs as nobody in particular, on a read-only file system (give it a /tmp), without torch.

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
RUN python -m venv /opt/daclip
RUN /opt/daclip/bin/python -m pip install --no-cache-dir -c constraints.txt ".[serve]"

FROM python:3.11-slim
COPY --from=build /opt/daclip /opt/daclip
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 VIPS_BLOCK_UNTRUSTED=1 HF_HUB_OFFLINE=1 HOME=/tmp
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["/opt/daclip/bin/python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["/opt/daclip/bin/daclip"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
