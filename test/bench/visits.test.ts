import { join } from "node:path";
import { expect, test } from "vitest";
import { createWithQemu } from "../support/images.ts";
import { temporaryDirectory, until } from "../support/run.ts";
import { serve } from "../support/tapdisk.ts";
import { readFirstSectors, startVisits } from "./visits.ts";

test("clients come and go until they are told to stop", async () => {
  const disk = join(temporaryDirectory(), "disk.vhd");
  await createWithQemu(disk, 8, { subformat: "dynamic", forceSize: true });
  const tapdisk = await serve(`vhd:${disk}`);
  await readFirstSectors(tapdisk.socket);
  const visits = startVisits(tapdisk.socket, 1000);
  await until("some came", () => visits.count > 20, 20);
  const count = await visits.end();
  expect(count).toBeGreaterThan(20);
  await tapdisk.stop();
  await expect(readFirstSectors(tapdisk.socket)).rejects.toThrow();
  await expect(startVisits(tapdisk.socket, 1000).end()).rejects.toThrow();
});
