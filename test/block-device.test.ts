// A VHD on a block device: whole programs, and a loop device with something else on it wherever nothing was written.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { scattered } from "./support/chains.ts";
import { expectSame, MIB, pattern, SECTOR } from "./support/data.ts";
import { applyExtents, contentWith, readThrough, writeThrough } from "./support/images.ts";
import { loopDevice } from "./support/loop.ts";
import { command, NbdClient, nbdError } from "./support/nbd-client.ts";
import { temporaryDirectory } from "./support/run.ts";
import { backends, serve, whileServed } from "./support/tapdisk.ts";
import { FOOTER_BYTES, image } from "./support/vhd-image.ts";

const SIZE = 20 * MIB;
const BLOCK = 2 * MIB;
/** A block with its bitmap and what aligns it. */
const STRIDE = BLOCK + 4096;

/** An empty image on a device with room for `blocks` blocks: the device and the file behind it. */
async function newDevice(blocks: number): Promise<{ device: string; path: string } | undefined> {
  const path = join(temporaryDirectory(), "device");
  const empty = image({ size: SIZE, blockSize: BLOCK, blocks: [], fill: () => 0 }, Buffer.alloc(SIZE));
  const bytes = Buffer.alloc(4096 + blocks * STRIDE + 4096, 0xc7);
  empty.copy(bytes, 0, 0, empty.length - FOOTER_BYTES);
  empty.copy(bytes, bytes.length - FOOTER_BYTES, empty.length - FOOTER_BYTES);
  writeFileSync(path, bytes);
  const device = await loopDevice(path);
  return device === undefined ? undefined : { device, path };
}

/** Each executor of file operations, through the page cache and around it. */
const ways = backends
  .flatMap((io) => [
    ["--io", io],
    ["--io", io, "--direct"],
  ])
  .map((options) => ({ name: options.join(" "), options }));

test.for(ways)("is written and read with $name", async ({ options }, { skip }) => {
  const made = (await newDevice(SIZE / BLOCK)) ?? skip("loop devices are not permitted here");
  const content = contentWith(SIZE, []);
  const before = readFileSync(made.path);
  for (const seed of [1, 2]) {
    const extents = scattered(SIZE, 9, seed);
    const tapdisk = await serve(`vhd:${made.device}`, ...options);
    await writeThrough(tapdisk, extents);
    applyExtents(content, extents);
    const client = await NbdClient.connect(tapdisk.socket);
    expect((await client.request(command.trim, BLOCK, BLOCK)).error).toBe(0);
    await client.close();
    content.fill(0, BLOCK, 2 * BLOCK);
    await tapdisk.stop();
    expectSame(await whileServed(`vhd:${made.device}`, ["--read-only"], readThrough), content, "read again");
  }
  const after = readFileSync(made.path);
  expect(after.length).toBe(before.length);
  expectSame(after.subarray(-FOOTER_BYTES), before.subarray(-FOOTER_BYTES), "the footer");
});

test("is full when the next block would meet the footer, and stays good", async ({ skip }) => {
  const made = (await newDevice(3)) ?? skip("loop devices are not permitted here");
  const data = pattern(SECTOR, 1);
  const tapdisk = await serve(`vhd:${made.device}`);
  const client = await NbdClient.connect(tapdisk.socket);
  for (let block = 0; block < 3; block++) expect((await client.write(block * BLOCK, data)).error).toBe(0);
  expect((await client.write(3 * BLOCK, data)).error).toBe(nbdError.ENOSPC);
  expect((await client.flush()).error).toBe(0);
  await client.close();
  await tapdisk.stop();
  const content = contentWith(
    SIZE,
    [0, 1, 2].map((block) => ({ offset: block * BLOCK, data })),
  );
  expectSame(await whileServed(`vhd:${made.device}`, [], readThrough), content, "read again");
});
