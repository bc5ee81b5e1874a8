// Requests that can't be carried out are answered with the right error, on a connection that goes on.

import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { expectSame, MIB, pattern, SECTOR } from "./support/data.ts";
import { createWithQemu, readWithQemu } from "./support/images.ts";
import { command, commandFlag, NbdClient, nbdError } from "./support/nbd-client.ts";
import { temporaryDirectory } from "./support/run.ts";
import { backends, serve } from "./support/tapdisk.ts";

const SIZE = 8 * MIB;

async function disk(): Promise<string> {
  const path = join(temporaryDirectory(), "disk.vhd");
  await createWithQemu(path, SIZE / MIB, { subformat: "dynamic", forceSize: true });
  return path;
}

const replies = [
  { replies: "structured", structuredReplies: true },
  { replies: "simple", structuredReplies: false },
];

describe.each(replies)("with $replies replies", ({ structuredReplies }) => {
  test.each(backends)("each wrong request gets its error (%s)", async (backend) => {
    const path = await disk();
    const tapdisk = await serve(`vhd:${path}`, "--io", backend);
    const client = await NbdClient.connect(tapdisk.socket, { structuredReplies });
    expect(client.size).toBe(SIZE);
    const data = pattern(MIB, 1);
    const errors: Record<string, Promise<{ error: number }>> = {
      "read behind the end": client.read(SIZE, SECTOR),
      "read across the end": client.read(SIZE - SECTOR, 2 * SECTOR),
      "read far behind the end": client.read(0xffff_ffff_ffff_fe00n, SECTOR),
      "read with an offset inside a sector": client.read(1, SECTOR),
      "read of half a sector": client.read(0, SECTOR / 2),
      "write behind the end": client.write(SIZE, data.subarray(0, SECTOR)),
      "write across the end": client.write(SIZE - SECTOR, data.subarray(0, 2 * SECTOR)),
      "write with an offset inside a sector": client.write(100, data.subarray(0, SECTOR)),
      "a command that is not there": client.request(77, 0, SECTOR),
      "a trim behind the end": client.request(command.trim, SIZE, SECTOR),
      "a flag that was not offered": client.write(0, data.subarray(0, SECTOR), 0x80),
    };
    const found: Record<string, number> = {};
    for (const [name, reply] of Object.entries(errors)) found[name] = (await reply).error;
    const { EINVAL, ENOSPC } = nbdError;
    expect(found).toEqual({
      "read behind the end": EINVAL,
      "read across the end": EINVAL,
      "read far behind the end": EINVAL,
      "read with an offset inside a sector": EINVAL,
      "read of half a sector": EINVAL,
      "write behind the end": ENOSPC,
      "write across the end": ENOSPC,
      "write with an offset inside a sector": EINVAL,
      "a command that is not there": EINVAL,
      "a trim behind the end": EINVAL,
      "a flag that was not offered": EINVAL,
    });
    // The very last sectors are there.
    expect((await client.write(SIZE - 2 * SECTOR, data.subarray(0, 2 * SECTOR), commandFlag.fua)).error).toBe(0);
    expectSame((await client.read(SIZE - SECTOR, SECTOR)).data, data.subarray(SECTOR, 2 * SECTOR), "the last sector");
    await client.close();
    await tapdisk.stop();
    const content = await readWithQemu(path);
    expectSame(content.subarray(0, SIZE - 2 * SECTOR), Buffer.alloc(SIZE - 2 * SECTOR), "all the rest of the disk");
  });

  test("a write to a read-only disk gets EPERM", async () => {
    const path = await disk();
    const tapdisk = await serve(`vhd:${path}`, "--read-only");
    const client = await NbdClient.connect(tapdisk.socket, { structuredReplies });
    expect(client.flags & 2).toBe(2);
    expect((await client.write(0, pattern(SECTOR, 1))).error).toBe(nbdError.EPERM);
    expect((await client.read(0, SECTOR)).error).toBe(0);
    expect((await client.flush()).error).toBe(0);
    await client.close();
    await tapdisk.stop();
  });

  test("a command that is not offered does what it says, or nothing and says so", async () => {
    const path = await disk();
    const tapdisk = await serve(`vhd:${path}`);
    const client = await NbdClient.connect(tapdisk.socket, { structuredReplies });
    const data = pattern(3 * MIB, 1);
    expect((await client.write(MIB, data)).error).toBe(0);
    const { error } = await client.request(command.writeZeroes, 2 * MIB - SECTOR, MIB);
    if (error === 0) data.fill(0, MIB - SECTOR, 2 * MIB - SECTOR);
    expectSame((await client.read(MIB, 3 * MIB)).data, data, `after zeroes that ended with ${error}`);
    await client.close();
    await tapdisk.stop();
  });

  test("many requests of a connection are in flight at once, and each gets its own answer", async () => {
    const path = await disk();
    const tapdisk = await serve(`vhd:${path}`);
    const client = await NbdClient.connect(tapdisk.socket, { structuredReplies });
    const data = pattern(SIZE, 7);
    const part = SIZE / 256;
    const parts = Array.from({ length: 256 }, (_, index) => ((index * 37) % 256) * part);
    const writes = await Promise.all(parts.map((start) => client.write(start, data.subarray(start, start + part))));
    expect(writes.filter(({ error }) => error !== 0)).toEqual([]);
    const reads = await Promise.all(parts.map((start) => client.read(start, part)));
    for (const [index, start] of parts.entries()) {
      expectSame(reads[index]?.data ?? Buffer.alloc(0), data.subarray(start, start + part), `the part at ${start}`);
    }
    await client.close();
    await tapdisk.stop();
  });
});

test("the largest requests that are offered are served", async () => {
  const path = join(temporaryDirectory(), "disk.vhd");
  await createWithQemu(path, 48, { subformat: "dynamic", forceSize: true });
  const tapdisk = await serve(`vhd:${path}`);
  const client = await NbdClient.connect(tapdisk.socket);
  const data = pattern(32 * MIB, 9);
  expect((await client.write(7 * MIB + SECTOR, data)).error).toBe(0);
  expectSame((await client.read(7 * MIB + SECTOR, 32 * MIB)).data, data, "32 MiB in one request");
  await client.close();
  await tapdisk.stop();
});
