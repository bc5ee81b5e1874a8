import { mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { loadEngineModule } from "../engine/load-node.ts";
import { portModule } from "../tapdisk/port.ts";
import { HostFiles } from "./files.ts";
import { JobRunner } from "./job-runner.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "host-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

function fileOf(name: string, bytes: number): string {
  const path = join(folder, name);
  writeFileSync(path, "");
  truncateSync(path, bytes);
  return path;
}

describe("a job runner", () => {
  it("runs one job after another on real files", async () => {
    const runner = new JobRunner(loadEngineModule(), portModule().Port);
    const path = fileOf("disk.raw", 8192);
    for (let round = 0; round < 2; round++) {
      expect(await runner.run({ job: "info", path, driver: "aio" })).toMatchObject([
        { path, type: "raw", size: "8192" },
      ]);
    }
    const phases: string[] = [];
    const map = await runner.run({ job: "map", path, driver: "aio", sector: 4, sectors: 100 }, ({ phase }) => {
      phases.push(phase);
    });
    expect(map).toEqual({ extents: [{ sector: 4, sectors: 12, level: 0, offset: 2048 }], end: 16 });
    expect(phases).toContain("mapping");
    runner.close();
  });

  it("says what is wrong, and goes on", async () => {
    const runner = new JobRunner(loadEngineModule(), portModule().Port);
    const path = join(folder, "missing.vhd");
    const failure = await runner.run({ job: "info", path, driver: "vhd" }).catch((error: unknown) => error);
    expect(failure).toMatchObject({ name: "JobError", errno: 2, message: expect.stringContaining(path) });
    await expect(runner.run({ job: "nonsense" })).rejects.toThrow(/nonsense/);
    const small = fileOf("small.vhd", 100);
    await expect(runner.run({ job: "coalesce", path: small })).rejects.toMatchObject({ errno: 22 });
    runner.close();
  });
});

describe("files of a host", () => {
  it("are opened with the lock that their use needs", () => {
    const { Port } = portModule();
    const path = fileOf("locked", 512);
    const [one, other] = [new Port({ backend: "auto" }), new Port({ backend: "auto" })].map(
      (port) => new HostFiles(port, false),
    ) as [HostFiles, HostFiles];
    one.open(path, "parent");
    other.open(path, "merge");
    expect(one.fulfil({ open: { path, driver: "vhd", access: "write" } })).toEqual({ errno: 16 });
    other.open(path, "inspect");
    other.closeAll();
    one.closeAll();
    one.open(path, "write");
  });

  it("are created and removed", () => {
    const { Port } = portModule();
    const files = new HostFiles(new Port({ backend: "auto" }), false);
    const path = join(folder, "a");
    expect(files.fulfil({ open: { path, driver: "vhd", access: "create" } })).toMatchObject({
      opened: { size: 0, blockDevice: false, realPath: path },
    });
    expect(files.fulfil({ open: { path, driver: "vhd", access: "create" } })).toEqual({ errno: 17 });
    expect(files.fulfil({ remove: { path } })).toEqual({ done: {} });
    expect(files.fulfil({ remove: { path } })).toEqual({ errno: 2 });
  });

  it("tell where they really are, and their space", () => {
    const { Port } = portModule();
    const files = new HostFiles(new Port({ backend: "auto" }), false);
    const path = fileOf("real", 1 << 20);
    const link = join(folder, "link");
    symlinkSync(path, link);
    const { file, realPath, modified } = files.open(link, "write");
    expect(realPath).toBe(path);
    expect(Math.abs((modified ?? 0) - Date.now() / 1000)).toBeLessThan(600);
    const answer = files.fulfil({ freeSpace: { file } });
    expect("freeSpace" in answer && answer.freeSpace > 0).toBe(true);
    expect(files.fulfil({ freeSpace: { file: 99 } })).toEqual({ errno: 5 });
  });
});
