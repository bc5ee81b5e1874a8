// The same WebAssembly package that tapdisk uses runs in a browser, on its page and in a worker.

import { readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { build } from "esbuild";
import { expect, onTestFinished, test } from "vitest";
import * as z from "zod";
import { builtFile } from "../ts/engine/built.ts";
import { MIB, pattern, sha256 } from "./support/data.ts";
import { contentWith, makeWithQemu } from "./support/images.ts";
import { RunningProgram, temporaryDirectory } from "./support/run.ts";

const reading = z.object({ disk: z.object({ type: z.string(), sizeBytes: z.int() }), sha256: z.string() });
const readings = z.object({ inPage: reading, inWorker: reading });

const types: Readonly<Record<string, string>> = {
  js: "text/javascript",
  wasm: "application/wasm",
  html: "text/html",
  vhd: "application/octet-stream",
};

/** Serves a folder to this machine for one test. Yields its address, and what a page posts there. */
async function serveFolder(folder: string): Promise<{ address: string; posted: Promise<string> }> {
  const server = createServer();
  const posted = new Promise<string>((resolve, reject) => {
    server.on("request", (request, response) => {
      if (request.method === "POST") {
        text(request).then(resolve, reject);
        response.end();
        return;
      }
      const name = (request.url ?? "/").replace(/^\/$/, "/page.html").slice(1);
      readFile(join(folder, name)).then(
        (bytes) => response.writeHead(200, { "content-type": types[name.split(".").at(-1) ?? ""] }).end(bytes),
        () => response.writeHead(404).end(),
      );
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return { address: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, posted };
}

test("a page and its worker read a VHD of qemu's", async () => {
  const folder = temporaryDirectory();
  const content = contentWith(8 * MIB, [
    { offset: 0, data: pattern(4096, 1) },
    { offset: 5 * MIB - 1024, data: pattern(300_000, 2) },
  ]);
  await makeWithQemu(join(folder, "disk.vhd"), content, { subformat: "dynamic", forceSize: true });
  await build({
    entryPoints: ["page.ts", "worker.ts"].map((name) => join(import.meta.dirname, "browser", name)),
    outdir: folder,
    bundle: true,
    format: "esm",
    target: "es2024",
    logLevel: "silent",
  });
  await writeFile(join(folder, "vhd_wasm_bg.wasm"), await readFile(builtFile("vhd_wasm_bg.wasm")));
  await writeFile(join(folder, "page.html"), '<!doctype html><body><script type="module" src="page.js"></script>');

  const { address, posted } = await serveFolder(folder);
  const chromium = new RunningProgram("chromium", [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    `--user-data-dir=${join(folder, "profile")}`,
    address,
  ]);
  const { inPage, inWorker } = readings.parse(JSON.parse(await posted));
  chromium.signal("SIGTERM");
  await chromium.outcome(20);
  const expected = { disk: { type: "dynamic", sizeBytes: 8 * MIB }, sha256: sha256(content) };
  expect(inPage).toEqual(expected);
  expect(inWorker).toEqual(expected);
});
