import { closeSync, openSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { run, temporaryDirectory } from "../support/run.ts";
import { LARGEST_ALIGN, LARGEST_BYTES, makeLargest } from "./large-images.ts";

test("other programs take the largest image for what it is, and what is read of it has data", {
  timeout: 120_000,
}, async () => {
  const path = join(temporaryDirectory(), "largest.vhd");
  makeLargest(path);
  const info = JSON.parse(await run("qemu-img", ["info", "--output=json", path]));
  expect(info).toMatchObject({ format: "vpc", "virtual-size": LARGEST_BYTES });
  const blocks = LARGEST_BYTES / LARGEST_ALIGN;
  expect(statSync(path).size).toBeGreaterThan(blocks * (2 << 20));

  const file = openSync(path, "r");
  const entry = Buffer.alloc(8);
  const pages = Buffer.alloc(4096 + 512);
  const perBlock = LARGEST_ALIGN / (2 << 20);
  for (const block of [0, 1, blocks >> 1, blocks - 1]) {
    readSync(file, entry, 0, 8, 1536 + block * perBlock * 4);
    expect(entry.readUInt32BE(4)).toBe(0xffff_ffff);
    readSync(file, pages, 0, pages.length, entry.readUInt32BE(0) * 512);
    expect(pages.subarray(0, 2)).toEqual(Buffer.from([0xff, 0]));
    expect(pages.subarray(512).every((byte) => byte === 0x5a)).toBe(true);
  }
  closeSync(file);
});
