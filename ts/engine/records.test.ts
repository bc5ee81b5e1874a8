import { describe, expect, it } from "vitest";
import { record_words } from "../../build/wasm/vhd_wasm.js";
import { Engine } from "./engine.ts";
import { loadEngineModule } from "./load-node.ts";
import { Records, recordWords } from "./records.ts";

describe("records", () => {
  it("have the same sizes as in Rust", () => {
    loadEngineModule();
    expect(JSON.parse(record_words())).toEqual(recordWords);
  });

  it("are shown anew when memory has grown", () => {
    const engine = new Engine(loadEngineModule(), 1 << 20);
    const memory = new WebAssembly.Memory({ initial: 1 });
    const records = new Records(memory, engine.records.layout);
    records.words[3] = 0xffff_fffe;
    memory.grow(1);
    records.refresh();
    expect(records.signed[3]).toBe(-2);
    expect(records.bytes.length).toBe(2 * 65536);
  });
});

describe("engine", () => {
  it("says where its areas are", () => {
    const { layout, words } = new Engine(loadEngineModule(), 1 << 20).records;
    for (const area of [layout.operations, layout.completions, layout.requests, layout.responses]) {
      expect(area.offset % 4).toBe(0);
      expect(area.offset + area.capacity * 4).toBeLessThanOrEqual(words.byteLength);
    }
  });

  it("answers requests for a disk that isn't open", () => {
    const engine = new Engine(loadEngineModule(), 1 << 20);
    const { layout, words, signed } = engine.records;
    words.set([7, 0, 0, 0, 1, 1, 0, 0], layout.tdRequests.offset >>> 2);
    expect(engine.step(0, 1)).toBe(1 << 15);
    const at = layout.finished.offset >>> 2;
    expect(words[at]).toBe(7);
    expect(signed[at + 1]).toBe(-108);
  });

  it("opens a raw disk without a single operation on real files", () => {
    const engine = new Engine(loadEngineModule(), 1 << 20);
    engine.open({ driver: "aio", path: "/x", file: 0, size: 4096, blockDevice: false, readOnly: true });
    expect(engine.step(0, 0)).toBe(0);
    expect(engine.jobRunning).toBe(false);
    expect(engine.openedDisk()).toMatchObject({ sectors: 8, sizeBytes: 4096, type: "raw", warnings: [] });
  });

  it("reports a failed job as an error with its errno", () => {
    const engine = new Engine(loadEngineModule(), 1 << 20);
    engine.open({ driver: "vhd", path: "/short.vhd", file: 0, size: 100, blockDevice: false, readOnly: true });
    engine.step(0, 0);
    expect(engine.jobRunning).toBe(false);
    expect(() => engine.openedDisk()).toThrow(expect.objectContaining({ name: "JobError", errno: 22 }));
    expect(() => engine.openedDisk()).toThrow(/^\/short\.vhd: .*too small/);
  });
});
