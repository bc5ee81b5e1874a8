/**
 * Records the bytecode of built programs, by using them: `node ts/boot/build.ts build/lib NAME...`. Whatever fails there would
 * fail for users, and fails the build.
 */

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const [lib = "", ...names] = process.argv.slice(2);
const record = ["--import", fileURLToPath(new URL("record.ts", import.meta.url))];

function run(name: string, ...args: readonly string[]): void {
  execFileSync(process.execPath, [...record, join(lib, `${name}.cjs`), ...args], {
    stdio: ["ignore", "ignore", "inherit"],
  });
}

/** Options of the NBD protocol with which a client gets the default export: an older way, and the newer one. */
const nbdOptions = {
  exportName: [option(1, Buffer.alloc(0))],
  go: [option(8, Buffer.alloc(0)), option(7, Buffer.alloc(6))],
};

function option(kind: number, data: Buffer): Buffer {
  const header = Buffer.alloc(16);
  header.write("IHAVEOPT", "latin1");
  header.writeUInt32BE(kind, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

/** A request of 4 KiB at 0: reading is of kind 0, disconnecting of kind 2. */
function request(kind: number): Buffer {
  const bytes = Buffer.alloc(28);
  bytes.writeUInt32BE(0x25609513);
  bytes.writeUInt16BE(kind, 6);
  bytes.writeUInt32BE(4096, 24);
  return bytes;
}

/** A client that reads once. It need not understand what it gets. */
async function read(path: string, options: readonly Buffer[]): Promise<void> {
  const flags = Buffer.from([0, 0, 0, 1]);
  const socket = connect(path).resume();
  socket.end(Buffer.concat([flags, ...options, request(0), request(2)]));
  await once(socket, "close");
}

async function serve(image: string, socket: string): Promise<void> {
  const args = [...record, join(lib, "tapdisk.cjs"), "serve", `vhd:${image}`, "--nbd", `unix:${socket}`];
  const tapdisk = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(tapdisk, "exit");
  await Promise.race([once(tapdisk.stdout, "data"), ended]);
  if (tapdisk.exitCode === null) {
    for (const options of Object.values(nbdOptions)) await read(socket, options);
    tapdisk.kill("SIGTERM");
  }
  const [status] = await ended;
  if (status !== 0) throw new Error(`tapdisk ended with ${status}`);
}

const folder = mkdtempSync(join(tmpdir(), "tapvhd-build-"));
try {
  for (const name of names) run(name, "--version");
  const image = join(folder, "disk.vhd");
  run("vhd-util", "create", "-n", image, "-s", "64");
  run("vhd-util", "query", "-n", image, "-v");
  run("vhd-check", image);
  await serve(image, join(folder, "nbd"));
} finally {
  rmSync(folder, { recursive: true });
}
