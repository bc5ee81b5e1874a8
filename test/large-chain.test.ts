// The longest chain that storage managers make, of the largest disks.

import { join } from "node:path";
import { expect, test } from "vitest";
import { LARGEST_BYTES, makeLargestChain } from "./bench/large-images.ts";
import { NbdClient } from "./support/nbd-client.ts";
import { temporaryDirectory } from "./support/run.ts";
import { serve } from "./support/tapdisk.ts";

test("30 images of 2040 GiB are opened, and read down to the last of them", async () => {
  const leaf = join(temporaryDirectory(), "leaf.vhd");
  makeLargestChain(leaf, 30);
  const tapdisk = await serve(`vhd:${leaf}`);
  const client = await NbdClient.connect(tapdisk.socket);
  expect(client.size).toBe(LARGEST_BYTES);
  const { error, data } = await client.read(0, 8192);
  expect(error).toBe(0);
  expect(data.equals(Buffer.alloc(8192).fill(0x5a, 0, 4096))).toBe(true);
  const last = await client.read(LARGEST_BYTES - 4096, 4096);
  expect(last).toMatchObject({ error: 0, data: Buffer.alloc(4096) });
  await client.close();
  await tapdisk.stop();
});
