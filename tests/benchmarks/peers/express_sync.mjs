// Express with the standardwebhooks package, two workers, every line appended and synced.
import cluster from "node:cluster";
import { open } from "node:fs/promises";
import express from "express";
import { Webhook } from "standardwebhooks";

if (cluster.isPrimary) {
  for (let worker = 0; worker < 2; worker++) cluster.fork();
  process.on("SIGTERM", () => process.exit(0));
} else {
  const webhook = new Webhook(process.env.RECEIVER__WEBHOOK_SECRET);
  const file = await open(`events-${process.pid}.jsonl`, "a");
  const app = express();
  app.post(
    "/webhooks/midbound",
    express.raw({ type: () => true, limit: "1mb" }),
    async (request, response) => {
      try {
        webhook.verify(request.body, request.headers);
      } catch {
        return response.status(401).end();
      }
      await file.write(Buffer.concat([request.body, Buffer.from("\n")]));
      await file.datasync();
      response.status(200).end();
    },
  );
  app.get("/healthz", (request, response) => response.send("ok"));
  app.listen(Number(process.env.RECEIVER__PORT), "127.0.0.1");
}
