// A disk that grows while clients use it: those that are connected go on, and those that come next see the new size.

import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { loadEngineModule } from "../ts/engine/load-node.ts";
import { JobRunner } from "../ts/host/job-runner.ts";
import { DiskThread } from "../ts/tapdisk/disk-thread.ts";
import { diskOptionsSchema } from "../ts/tapdisk/messages.ts";
import { NbdServer } from "../ts/tapdisk/nbd-server.ts";
import { portModule } from "../ts/tapdisk/port.ts";
import { nbdExport } from "../ts/tapdisk/serve.ts";
import { MIB, pattern } from "./support/data.ts";
import { NbdClient } from "./support/nbd-client.ts";
import { temporaryDirectory } from "./support/run.ts";
import { backends } from "./support/tapdisk.ts";

test.each(backends)("an open disk grows with --io %s", async (backend) => {
  const folder = temporaryDirectory();
  const path = join(folder, "disk.vhd");
  const port = portModule();
  const runner = new JobRunner(loadEngineModule(), port.Port);
  onTestFinished(() => runner.close());
  const uuid = "6f7a1d0c-5a3b-4f57-9b05-f5a1b0a3c9d4";
  const size = { size: 10 * MIB, maxSize: 64 * MIB };
  await runner.run({ job: "create", path, type: "dynamic", ...size, uuid, now: 1_800_000_000 });

  const options = diskOptionsSchema.parse({
    stack: [{ driver: "vhd", name: path }],
    readOnly: false,
    direct: false,
    backend,
    bitmapCacheBytes: MIB,
    pollMicroseconds: 0,
  });
  const thread = await DiskThread.open(port, options);
  const server = new NbdServer(port, thread, nbdExport(options, thread), () => {});
  const socket = join(folder, "nbd");
  await server.listen({ kind: "unix", path: socket });
  const early = await NbdClient.connect(socket);
  expect(early.size).toBe(10 * MIB);
  const writes = Array.from({ length: 64 }, (_, index) => early.write(index * 65536, pattern(65536, index)));
  await thread.grow(64 * MIB);
  for (const { error } of await Promise.all(writes)) expect(error).toBe(0);
  await expect(thread.grow(65 * MIB)).rejects.toMatchObject({ errno: 22 });
  await expect(thread.grow(MIB)).rejects.toMatchObject({ errno: 22 });

  const late = await NbdClient.connect(socket);
  expect(late.size).toBe(64 * MIB);
  const data = pattern(65536, 99);
  expect((await late.write(64 * MIB - data.length, data)).error).toBe(0);
  const back = await late.read(64 * MIB - data.length, data.length);
  expect(back.error === 0 && back.data.equals(data)).toBe(true);
  await early.close();
  await late.close();
  server.close();
  await thread.close();
  expect(await runner.run({ job: "info", path, driver: "vhd" })).toMatchObject([{ size: `${64 * MIB}` }]);
});
