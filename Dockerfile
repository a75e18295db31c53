# eventspine as a container: `docker build -t eventspine .`; the command is `eventspine`.
FROM python:3.13-slim
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir ".[registry,metrics,redis,opensearch,webhooks]" && useradd --system eventspine
USER eventspine
ENTRYPOINT ["eventspine"]
CMD ["--help"]
