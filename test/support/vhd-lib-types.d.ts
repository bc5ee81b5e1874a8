// The parts of npm `vhd-lib` (AGPL; used by tests only) that the tests use. It brings no types.
declare module "vhd-lib" {
  import type { Readable } from "node:stream";

  /** How vhd-lib reaches files. */
  export interface Handler<File = number> {
    openFile(path: string, flags: string): Promise<number>;
    closeFile(file: number): Promise<void>;
    getSize(file: File): Promise<number>;
    read(file: File, buffer: Buffer, position: number): Promise<{ bytesRead: number; buffer: Buffer }>;
    write(file: number, buffer: Buffer, position: number): Promise<void>;
  }

  // biome-ignore lint/style/noDefaultExport: it is how vhd-lib exports it
  export default class Vhd {
    constructor(handler: Handler, file: number);
    readHeaderAndFooter(checkSecondFooter?: boolean): Promise<void>;
    readBlockAllocationTable(): Promise<void>;
    writeData(offsetSectors: number, buffer: Buffer): Promise<void>;
  }

  export interface Fragment {
    logicalAddressBytes: number;
    data: Buffer;
  }

  /** A dynamic VHD with these fragments and nothing else. */
  export function createReadableSparseStream(
    diskSize: number,
    fragmentSize: number,
    fragmentAddresses: number[],
    fragments: AsyncIterable<Fragment>,
  ): Promise<Readable>;

  /** A fixed VHD. */
  export function createReadableRawStream(size: number, blockParser: { next(): Promise<Fragment | null> }): Readable;

  /** Merges a child into its parent. */
  export function mergeVhd(
    parentHandler: Handler,
    parent: string,
    childHandler: Handler,
    child: string,
  ): Promise<unknown>;

  /** Checks header and footers of an image and its parents. */
  export function checkVhdChain(handler: Pick<Handler<string>, "getSize" | "read">, path: string): Promise<void>;

  /** What is on the disk. */
  export function createContentStream(handler: Handler, path: string): Readable;
}
