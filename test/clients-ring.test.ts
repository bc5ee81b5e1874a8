// A guest's side of the shared ring, honest and not.

import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { MIB, pattern } from "./support/data.ts";
import { createWithQemu, readWithQemu } from "./support/images.ts";
import { RunningProgram, run, temporaryDirectory } from "./support/run.ts";
import { backends, ringClient, serve } from "./support/tapdisk.ts";

/** Just before the indexes of the ring wrap around. */
const WRAPPING = String(2 ** 32 - 16);

/** A new disk, and where its ring is to be. */
async function place(): Promise<{ path: string; socket: string }> {
  const directory = temporaryDirectory();
  const path = join(directory, "disk.vhd");
  await createWithQemu(path, 64, { subformat: "dynamic", forceSize: true });
  return { path, socket: join(directory, "ring") };
}

describe.each(backends)("over the ring (%s)", (backend) => {
  test.each([
    { what: "from the first index on", options: [] },
    { what: "with indexes that wrap around", options: ["--start-index", WRAPPING] },
    { what: "one request at a time", options: ["--depth", "1", "--start-index", WRAPPING], requests: "1500" },
    { what: "around the page cache", options: [], tapdisk: ["--direct"] },
    { what: "in a few sectors, all of them busy", options: ["--sectors-limit", "512", "--flush-every", "50"] },
  ])("random requests find what they must, $what", async ({ options, tapdisk = [], requests = "8000" }) => {
    const { path, socket } = await place();
    const server = await serve(`vhd:${path}`, "--ring", `unix:${socket}`, "--io", backend, ...tapdisk);
    await run(ringClient, ["verify", "--socket", socket, "--requests", requests, ...options]);
    await server.stop();
    // It wrote something, and left a file that others can read.
    expect((await readWithQemu(path)).some((byte) => byte !== 0)).toBe(true);
  });

  test("requests that no honest guest sends get errors, and the ring goes on", async () => {
    const { path, socket } = await place();
    const server = await serve(`vhd:${path}`, "--ring", `unix:${socket}`, "--io", backend);
    const output = await run(ringClient, ["malformed", "--socket", socket]);
    for (const name of ["without segments", "of 12 segments", "across the end", "first > last", "operation 255"]) {
      expect(output).toContain(name);
    }
    await run(ringClient, ["verify", "--socket", socket, "--requests", "2000"]);
    await server.stop();
  });

  test("a guest that dies under load, or talks nonsense, leaves room for the next", async () => {
    const { path, socket } = await place();
    const server = await serve(`vhd:${path}`, "--ring", `unix:${socket}`, "--io", backend);
    for (let round = 0; round < 5; round++) {
      const guest = new RunningProgram(ringClient, ["verify", "--socket", socket, "--requests", "100000000"]);
      await new Promise((resolve) => setTimeout(resolve, 30 + 40 * round));
      guest.signal("SIGKILL");
      await guest.outcome(10);
      const stranger = connect(socket);
      stranger.on("error", () => {}); // being reset is as good as being closed
      stranger.resume();
      const closed = once(stranger, "close");
      stranger.end(pattern(1 + round * 3000, round));
      await closed;
    }
    // It begins by reading the disk: a dead guest's write that came after that would be found.
    await run(ringClient, ["verify", "--socket", socket, "--requests", "2000"]);
    await server.stop();
  });

  test("a read-only disk can be read and not written", async () => {
    const { path, socket } = await place();
    const server = await serve(`vhd:${path}`, "--ring", `unix:${socket}`, "--io", backend, "--read-only");
    await run(ringClient, ["malformed", "--socket", socket]);
    await server.stop();
    expect((await readWithQemu(path)).equals(Buffer.alloc(64 * MIB))).toBe(true);
  });
});
