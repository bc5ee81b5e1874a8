import { fstatSync, openSync } from "node:fs";
import { afterEach, describe, expect, it } from "vitest";
import { DiskThread, RefusedError } from "./disk-thread.ts";
import { type DiskOptions, diskOptionsSchema } from "./messages.ts";
import { startThread, startThreadAhead, takeThread } from "./threads.ts";

const options: DiskOptions = diskOptionsSchema.parse({
  stack: [{ driver: "vhd", name: "/x" }],
  readOnly: false,
  direct: false,
  backend: "auto",
  bitmapCacheBytes: 1,
  pollMicroseconds: 0,
});

/** A worker that does as it is told, in place of one with a data plane. */
function open(script: string): Promise<DiskThread> {
  return DiskThread.open(port, options, startThread(entry(script)));
}

function entry(script: string): URL {
  const code = `import { parentPort } from "node:worker_threads";
    const disk = { sectors: 8, sizeBytes: 4096, type: "raw", blockSize: 0, uuid: "", depth: 1, warnings: [] };
    const report = (message) => parentPort.postMessage(message);
    const opened = () => report({ kind: "opened", wakeFd: 9, backend: "none", disk });
    const on = (handler) => parentPort.on("message", (message) => {
      if (message.kind === "open") return;
      if (message.kind === "close") { report({ kind: "closed" }); parentPort.close(); } else handler(message);
    });
    ${script}`;
  return new URL(`data:text/javascript,${encodeURIComponent(code)}`);
}

const wakes: number[] = [];
const port = { duplicateFd: () => openSync("/dev/null", "w"), wake: (fd: number) => wakes.push(fd) };
const ring = { memory: 3, kick: 4, notify: 5 };

describe("DiskThread", () => {
  afterEach(() => wakes.splice(0));

  it("says why a disk can't be opened", async () => {
    await expect(open(`report({ kind: "failed", message: "/x: no" });`)).rejects.toThrow("/x: no");
    await expect(open(`throw new Error("early");`)).rejects.toThrow("early");
    await expect(open(`process.exit(3);`)).rejects.toThrow("the disk's thread ended with code 3");
  });

  it("says why a thread that was started ahead is gone when it is wanted", async () => {
    const thread = startThread(entry(`throw new Error("early");`));
    await new Promise((resolve) => thread.worker.once("exit", resolve));
    await expect(DiskThread.open(port, options, thread)).rejects.toThrow("early");
  });

  it("takes a thread that was started ahead, once", async () => {
    startThreadAhead();
    startThreadAhead();
    const later = startThread(entry("")).worker.threadId;
    const threads = [takeThread(), takeThread()];
    // Threads are numbered in the order in which they are started.
    expect(threads.map(({ worker }) => worker.threadId)).toEqual([later - 1, later + 1]);
    for (const { worker } of threads) await worker.terminate();
  });

  it("opens and closes, and wakes the worker for each message", async () => {
    const thread = await open(`opened(); on(() => {});`);
    expect(thread.disk.sectors).toBe(8);
    await thread.close();
    const [wakeFd = -1, ...others] = wakes;
    expect(others).toEqual([]);
    // Its descriptor is closed.
    expect(() => fstatSync(wakeFd)).toThrow("EBADF");
  });

  it("attaches front ends, and tells when they have gone", async () => {
    const thread = await open(`opened(); let next = 70; on((message) => {
      if (message.kind === "attachRing") report({ kind: "attached", request: message.request, frontEnd: next++ });
      if (message.kind === "detach") report({ kind: "frontEndClosed", frontEnd: message.frontEnd });
    });`);
    let gone = "";
    const attached = [
      thread.attachRing(ring, () => {
        gone += "a";
      }),
      thread.attachRing(ring, () => {
        gone += "b";
      }),
    ];
    expect(await Promise.all(attached)).toEqual([70, 71]);
    thread.detach(71);
    thread.detach(12);
    await thread.attachRing(ring, () => {
      gone += "c";
    });
    expect(gone).toBe("b");
    await thread.close();
    expect(gone).toBe("bac");
  });

  it("passes on why a front end is refused", async () => {
    const thread = await open(`opened();
      on(({ request }) => report({ kind: "refused", request, message: "no ring", errno: 22 }));`);
    const refusal = await thread.attachRing(ring, () => {}).catch((error: unknown) => error);
    expect(refusal).toBeInstanceOf(RefusedError);
    expect(refusal).toMatchObject({ message: "no ring", errno: 22 });
    await thread.close();
  });

  it("knows the disk's new size, and why it can't have one", async () => {
    const thread = await open(`opened();
      on(({ request, sizeBytes }) => report(sizeBytes > 9000
        ? { kind: "refused", request, message: "no room", errno: 22 } : { kind: "grown", request }));`);
    await thread.grow(8192);
    expect(thread.disk).toMatchObject({ sizeBytes: 8192, sectors: 16 });
    await expect(thread.grow(9216)).rejects.toMatchObject({ message: "no room", errno: 22 });
    expect(thread.disk.sizeBytes).toBe(8192);
    await thread.close();
  });

  it.each([
    [
      "reports that it failed",
      `report({ kind: "failed", message: "the engine broke" }); parentPort.close();`,
      "the engine broke",
    ],
    ["throws", `throw new Error("the engine broke");`, "the engine broke"],
    ["just ends", `process.exit(7);`, "the disk's thread ended with code 7"],
  ])("ends with an error when the worker %s", async (_how, script, message) => {
    const thread = await open(`opened(); on(() => { ${script} });`);
    const refusal = thread.attachRing(ring, () => {});
    refusal.catch(() => {});
    await expect(thread.ended).rejects.toThrow(message);
    await expect(refusal).rejects.toThrow("the disk is closed");
    const before = wakes.length;
    await expect(thread.attachRing(ring, () => {})).rejects.toThrow("the disk is closed");
    await expect(thread.grow(8192)).rejects.toThrow("the disk is closed");
    await expect(thread.close()).rejects.toThrow(message);
    expect(wakes.length).toBe(before);
  });
});
