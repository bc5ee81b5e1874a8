import { cbtUtil } from "./cbt-util/suite.ts";
import { runSuite } from "./cli/suite.ts";

void runSuite(cbtUtil);
