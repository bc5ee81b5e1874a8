// Clients that misbehave harm themselves only: the disk is right, others are served, and tapdisk ends as it should.

import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { expectSame, MIB, pattern, SECTOR } from "./support/data.ts";
import { createWithQemu } from "./support/images.ts";
import { command, NbdClient } from "./support/nbd-client.ts";
import { temporaryDirectory } from "./support/run.ts";
import { backends, serve, type Tapdisk } from "./support/tapdisk.ts";

const SIZE = 32 * MIB;
const data = pattern(SIZE, 1);

/** A served disk that is full of data. */
async function fullDisk(backend: string): Promise<Tapdisk> {
  const path = join(temporaryDirectory(), "disk.vhd");
  await createWithQemu(path, SIZE / MIB, { subformat: "dynamic", forceSize: true });
  const tapdisk = await serve(`vhd:${path}`, "--io", backend);
  const client = await NbdClient.connect(tapdisk.socket);
  expect((await client.write(0, data)).error).toBe(0);
  await client.close();
  return tapdisk;
}

/** An honest client finds the disk as it was. */
async function expectUnharmed(tapdisk: Tapdisk): Promise<void> {
  const client = await NbdClient.connect(tapdisk.socket);
  expectSame((await client.read(0, SIZE)).data, data, "the disk afterwards");
  await client.close();
  await tapdisk.stop();
}

describe.each(backends)("a client (%s)", (backend) => {
  test("that goes away in the middle of a write changes nothing", async () => {
    const tapdisk = await fullDisk(backend);
    for (let round = 0; round < 40; round++) {
      const client = await NbdClient.connect(tapdisk.socket);
      const length = 256 * 1024;
      client.socket.write(NbdClient.requestBytes(command.write, round * SECTOR, length, 1n));
      // From nothing of the data to all but one byte.
      client.socket.write(Buffer.alloc(Math.floor(((length - 1) * round) / 39), 0xee));
      await new Promise((resolve) => setTimeout(resolve, round % 4));
      client.socket.destroy();
    }
    await expectUnharmed(tapdisk);
  });

  test("that goes away while its requests are carried out harms no other", async () => {
    const tapdisk = await fullDisk(backend);
    const honest = await NbdClient.connect(tapdisk.socket);
    for (let round = 0; round < 20; round++) {
      const client = await NbdClient.connect(tapdisk.socket);
      const lost = Array.from({ length: 64 }, (_, index) => client.read(index * 4096, 64 * 1024).catch(() => "lost"));
      const same = client.write(MIB, data.subarray(MIB, 2 * MIB)).catch(() => "lost");
      await new Promise((resolve) => setTimeout(resolve, round % 5));
      client.socket.destroy();
      const offset = round * MIB;
      expectSame(
        (await honest.read(offset, MIB)).data,
        data.subarray(offset, offset + MIB),
        "the honest client's data",
      );
      await Promise.all([...lost, same]);
    }
    await honest.close();
    await expectUnharmed(tapdisk);
  });

  test("that talks nonsense is let go", async () => {
    const tapdisk = await fullDisk(backend);
    for (let round = 0; round < 10; round++) {
      const socket = connect(tapdisk.socket);
      socket.on("error", () => {}); // a connection that is reset is as good
      socket.resume();
      const closed = once(socket, "close");
      socket.end(pattern(1 + round * 1000, round));
      await closed;
      const client = await NbdClient.connect(tapdisk.socket);
      const gone = once(client.socket, "close");
      client.socket.write(pattern(28 + round * 5000, 50 + round));
      await gone;
    }
    await expectUnharmed(tapdisk);
  });

  test("that never takes its answers keeps nobody waiting, though there are eight of it", async () => {
    const tapdisk = await fullDisk(backend);
    const lazy = await Promise.all(
      Array.from({ length: 8 }, async (_, index) => {
        const client = await NbdClient.connect(tapdisk.socket);
        client.socket.pause();
        const answers = Array.from({ length: 64 }, (_, request) =>
          client.read(((index + request) % 32) * MIB, MIB).catch(() => "lost"),
        );
        return { client, answers };
      }),
    );
    const honest = await NbdClient.connect(tapdisk.socket);
    const begun = performance.now();
    for (let offset = 0; offset < SIZE; offset += MIB) {
      expectSame((await honest.read(offset, MIB)).data, data.subarray(offset, offset + MIB), `the data at ${offset}`);
    }
    expect((await honest.write(0, data.subarray(0, MIB))).error).toBe(0);
    expect(performance.now() - begun).toBeLessThan(10_000);
    await honest.close();
    for (const { client, answers } of lazy) {
      client.socket.destroy();
      await Promise.all(answers);
    }
    await expectUnharmed(tapdisk);
  });
});
